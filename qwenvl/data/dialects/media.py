"""Read the ways in which records give a medium: a path, a URL, bytes, a list of frames, or nothing."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from qwenvl.data.dialects.neutral import EmbeddedFile, FrameList, InvalidRecordError, Medium, format_value, is_missing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm")
# Far above any camera, far below the range of a floating-point number.
_MAX_FPS = 10_000
_FILE_KEYS = frozenset(("path", "bytes", "url", "detail"))
_FRAME_KEYS = frozenset(("frames", "fps"))
_WHITE_SPACE = re.compile(r"\s+")


def listed_media(value: Any, kind: str) -> list[Medium]:
    """Return the media under a record's key: one, a list of them, or nothing.

    A list of images under a key for videos is one video, given as its frames; so is a list inside the list.
    """
    if is_missing(value):
        return []
    if not isinstance(value, list):
        return [read_medium(value, kind)]
    if kind == "video" and are_frames(value):
        return [read_frames(value, None)]
    return [read_medium(each, kind) for each in value]


def read_medium(value: Any, kind: str, fps: float | None = None) -> Medium:
    """Return one medium; raises `InvalidRecordError` for anything else. `fps` is the rate of frames."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bytes) and value:
        return EmbeddedFile(value)
    if kind == "video" and isinstance(value, list) and value:
        return read_frames(value, fps)
    if isinstance(value, dict) and not is_missing(value):
        if kind == "video" and value.keys() <= _FRAME_KEYS and isinstance(value.get("frames"), list):
            return read_frames(value["frames"], read_fps(value.get("fps")) or fps)
        if value.keys() <= _FILE_KEYS:
            return _from_file_object(value, kind)
    listed = "a path or a list of paths" if kind == "image" else "a path, a list of paths, or a list of frames"
    raise InvalidRecordError(f"`{kind}` is {format_value(value)}, expected {listed}")


def read_frames(frames: Sequence[Any], fps: float | None) -> FrameList:
    """Return a video that is given as images."""
    media = [read_medium(frame, "image") for frame in frames]
    if len(media) < 2:
        raise InvalidRecordError(
            f"a video of {len(media)} frame(s), expected at least 2: give a single one as an image"
        )
    return FrameList(tuple(media), fps)


def are_frames(values: list[Any]) -> bool:
    """Return whether a list given for videos contains images only, by their names."""
    return len(values) > 1 and all(
        isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES) for value in values
    )


def read_fps(value: Any) -> float | None:
    """Return frames per second, or None where none are given; raises `InvalidRecordError`."""
    if is_missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_FPS:
        raise InvalidRecordError(f"fps is {format_value(value)}, expected the number of frames per second")
    return float(value)


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64 text; raises `InvalidRecordError`."""
    try:
        return base64.b64decode(_WHITE_SPACE.sub("", text), validate=True)
    # ValueError: characters beyond ASCII.
    except (binascii.Error, ValueError):
        raise InvalidRecordError(
            f"{format_value(text)} is not base64: encode the bytes again, or give a path"
        ) from None


def decode_data_url(url: str) -> EmbeddedFile:
    """Return the file in a `data:` URL; raises `InvalidRecordError`."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRecordError(f"{format_value(url)} is not a URL of the form data:image/png;base64,...: correct it")
    return EmbeddedFile(decode_base64(body))


def _from_file_object(value: dict[str, Any], kind: str) -> Medium:
    """Return the medium in `{"path", "bytes"}` of Hugging Face or `{"url"}` of OpenAI; bytes take precedence."""
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, str) and data:
        data = decode_base64(data)
    name = path if isinstance(path, str) and path else None
    if isinstance(data, bytes) and data:
        return EmbeddedFile(data, name)
    path = name or value.get("url")
    if not is_missing(data) or not isinstance(path, str) or not path:
        raise InvalidRecordError(f"`{kind}` is {format_value(value)}, expected a path or bytes in it")
    return path

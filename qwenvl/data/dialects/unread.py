"""Collect the keys of a record that are not read, and reject those that hold an image, a video or audio."""

import re
from collections.abc import Mapping, Set
from typing import Any

from qwenvl.data.dialects.neutral import UnreadMediumError, format_value, is_missing

# Names that can only refer to media, whatever their value: "Image", "image_path", "img_files".
_ALIAS = re.compile(
    r"(?:image|img|picture|photo|video|audio)s?[_-]?(?:path|file|file_?name|list|url|data|bytes|base64|b64)?s?", re.I
)
_MEDIUM = re.compile(r"image|img|picture|photo|video|clip|frame|audio|sound|dicom|dcm|scan|x[_-]?ray", re.I)
_FILE = re.compile(
    r"(?:data:(?:image|video|audio)/.*|.*\.(?:png|jpe?g|bmp|gif|tiff?|webp|dcm|dicom|nii|nii\.gz|mp4|avi|mov|mkv|webm"
    r"|m4v|mpe?g|wav|mp3|flac|ogg|m4a))",
    re.I | re.S,
)
# Keys that identify and describe a sample, as converters (ours included) write them: its names, which many datasets
# derive from the file name, and what evaluation groups by.
_DESCRIPTIVE = frozenset(
    ("id", "uid", "uuid", "split", "subject_id", "patient_id", "study_id", "prior_study_id", "dicom_id")
    + ("view", "labels")
)


def note_unread(
    value: Mapping[str, Any], read: Set[str], level: str, unread: list[str], has_media: bool = True
) -> None:
    """Add the keys of a record, turn or part that are not in `read` to `unread`, with the `level` of the object.

    Raises `UnreadMediumError` for a key that holds a medium. If the record has other media (`has_media`), a key whose
    name does not suggest a medium may name a file.
    """
    for key in value.keys() - read:
        held, name = value[key], f"`{key[:60]}`" if key.isprintable() else format_value(key)
        if is_missing(held):
            continue
        if _holds_medium(key, held, has_media):
            raise UnreadMediumError(
                key,
                f"{name} of the {level} holds {format_value(held)} and is not read: name it `image` or `images` "
                "(`video` or `videos`) in the record, or delete it",
            )
        if key not in _DESCRIPTIVE:
            unread.append(name if level == "record" else f"{name} of {level}")


def _holds_medium(key: str, held: Any, has_media: bool) -> bool:
    if key in _DESCRIPTIVE:
        return False
    if _ALIAS.fullmatch(key) and not isinstance(held, bool | int | float):
        return True
    return (not has_media or _MEDIUM.search(key) is not None) and _is_file(held)


def _is_file(held: Any) -> bool:
    if isinstance(held, bytes):
        return True
    if isinstance(held, str):
        return len(held) < 4096 and "\n" not in held and _FILE.fullmatch(held) is not None or held.startswith("data:i")
    if isinstance(held, dict):
        return isinstance(held.get("bytes"), bytes) or any(
            isinstance(held.get(key), str) and _is_file(held[key]) for key in ("path", "url")
        )
    return isinstance(held, list) and bool(held) and not isinstance(held[0], list) and _is_file(held[0])

"""Read a turn whose content is a list of parts: OpenAI, TRL, qwen-vl-utils and DashScope."""

from dataclasses import dataclass, field
from typing import Any

from qwenvl.data.dialects.media import decode_base64, read_fps, read_medium
from qwenvl.data.dialects.neutral import (
    PLACEHOLDERS,
    EmbeddedFile,
    InvalidRecordError,
    Medium,
    format_value,
    is_missing,
)
from qwenvl.data.dialects.unread import note_unread

# Options that qwen-vl-utils reads from a part of a message. Here they are flags of the run.
PART_OPTIONS = frozenset(
    ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
    + ("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end")
)
_KINDS = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}
_SOURCES = ("path", "url", "base64")
_READ_KEYS = frozenset(("type", "text", "index", "detail", *_KINDS, *_SOURCES, *PART_OPTIONS, "sample_fps", "raw_fps"))


@dataclass(slots=True)
class PartMedia:
    """The media of a record's parts, in order: a medium, its number in the record's own list, or None for the next."""

    slots: dict[str, list[Medium | int | None]] = field(default_factory=lambda: {kind: [] for kind in PLACEHOLDERS})

    def __bool__(self) -> bool:
        return any(self.slots.values())


def read_parts(parts: list[Any], number: int, media: PartMedia, unread: list[str]) -> str:
    """Return the text of a turn's parts with a placeholder for each medium, which is added to `media`."""
    return "".join(_part_text(part, number, media, unread) for part in parts)


def _part_text(part: Any, number: int, media: PartMedia, unread: list[str]) -> str:
    kind = _kind(part)
    if kind is None:
        expected = "type text, image, image_url or video"
        raise InvalidRecordError(f"turn {number} has the part {format_value(part)}, expected {expected}")
    note_unread(part, _READ_KEYS, "parts", unread)
    others = [key for key in (*_KINDS, "text") if _KINDS.get(key, key) != kind and not is_missing(part.get(key))]
    if others:
        raise InvalidRecordError(f"turn {number} has {others[0]} in a part of type {kind}: make it a part of its own")
    if kind == "text":
        return part["text"]
    media.slots[kind].append(_medium(part, kind, number))
    return PLACEHOLDERS[kind]


def _kind(part: Any) -> str | None:
    """Return "text", "image" or "video", or None for anything else; DashScope's parts have no type, only the key."""
    if not isinstance(part, dict):
        return None
    kind = part.get("type")
    if kind is None:
        given = [key for key in ("text", *_KINDS) if not is_missing(part.get(key))]
        given = given or [key for key in ("text",) if part.get(key) == ""]
        kind = given[0] if len(given) == 1 else None
    if kind == "text":
        return kind if isinstance(part.get("text"), str) else None
    return _KINDS.get(kind) if isinstance(kind, str) else None


def _medium(part: dict[str, Any], kind: str, number: int) -> Medium | int | None:
    keys = [key for key, what in _KINDS.items() if what == kind] + list(_SOURCES)
    given = [key for key in keys if not is_missing(part.get(key))]
    index = part.get("index")
    if len(given) > 1 or (given and not is_missing(index)):
        raise InvalidRecordError(f"turn {number} gives one {kind} by {' and '.join([*given, 'index'][:2])}: keep one")
    as_frames = bool(given) and isinstance(part[given[0]], list)
    options = sorted(key for key in PART_OPTIONS if part.get(key) is not None and not (as_frames and key == "fps"))
    if options:
        raise InvalidRecordError(
            f"turn {number} sets {', '.join(options)} on one part; set it for the run, by its flag"
        )
    if not given:
        return _index(index, kind, number)
    value = part[given[0]]
    try:
        if given[0] == "base64":
            return EmbeddedFile(decode_base64(value if isinstance(value, str) else format_value(value)))
        fps = read_fps(part.get("fps")) or read_fps(part.get("sample_fps")) if as_frames else None
        return read_medium(value, kind, fps)
    except InvalidRecordError as error:
        raise InvalidRecordError(f"turn {number} has the {kind} {format_value(value)}: {error.reason}") from None


def _index(index: Any, kind: str, number: int) -> int | None:
    if is_missing(index):
        return None
    if isinstance(index, bool) or not isinstance(index, int | float) or index != index // 1 or not 0 <= index < 2**31:
        raise InvalidRecordError(f"turn {number} has the {kind} with index {format_value(index)}, expected 0, 1, 2...")
    return int(index)

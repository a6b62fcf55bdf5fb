"""The neutral form of a row of every dialect, and helpers shared by the readers."""

import math
from dataclasses import dataclass, field
from typing import Any

from qwenvl.data.records import Turn

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


class InvalidRecordError(Exception):
    """A record that cannot be used: the reason, and the path of the medium at fault (if any)."""

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


class UnreadMediumError(InvalidRecordError):
    """A medium under the record's key `key`, which is not read."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """A medium whose bytes are in the record; `name` is its original file name, if known."""

    data: bytes
    name: str | None = None


@dataclass(frozen=True, slots=True)
class FrameList:
    """A video given as images in order; `fps` is the number of images per second, if the record gives it."""

    frames: tuple["str | EmbeddedFile", ...]
    fps: float | None = None


Medium = str | EmbeddedFile | FrameList


@dataclass(slots=True)
class Conversation:
    """Content of a row in any dialect; media are as in the row, `fps` is the rate of videos given as frames.

    `unread` lists the keys that were not read.
    """

    turns: list[Turn]
    media: dict[str, list[Medium]] = field(default_factory=lambda: {kind: [] for kind in PLACEHOLDERS})
    fps: list[float] | float | None = None
    objects: dict[str, Any] | None = None
    tools: str | None = None
    unread: list[str] = field(default_factory=list)


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: None, NaN, "", [], or an object of None only, as tables fill gaps."""
    if value is None or value == "" or value == []:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, dict) and all(each is None for each in value.values())


def format_value(value: Any) -> str:
    """Format a value for a message: one line, at most 60 characters."""
    try:
        # Only the beginning of a long text or list is formatted.
        text = repr(value[:60] if isinstance(value, str | bytes | list) else value)
    # Nested too deeply, or an integer with too many digits.
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."

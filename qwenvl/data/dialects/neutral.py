"""The neutral form that every dialect of annotation files becomes, and what its readers share."""

import math
from dataclasses import dataclass, field
from typing import Any

from qwenvl.data.records import Turn

PLACEHOLDERS = {"image": "<image>", "video": "<video>"}


class InvalidRecordError(Exception):
    """A record that cannot be used: the reason, and the path of the medium it is about (if any)."""

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
    """A medium whose bytes are in the record; `name` is what its file was called, where that is known."""

    data: bytes
    name: str | None = None


@dataclass(frozen=True, slots=True)
class FrameList:
    """A video given as images in their order; `fps` is how many of them make a second, if the record says so."""

    frames: tuple["str | EmbeddedFile", ...]
    fps: float | None = None


Medium = str | EmbeddedFile | FrameList


@dataclass(slots=True)
class Conversation:
    """What a row says, whatever its dialect; media are as they were written, `fps` is that of videos given as frames.

    `unread` names the keys that nothing was made of.
    """

    turns: list[Turn]
    media: dict[str, list[Medium]] = field(default_factory=lambda: {kind: [] for kind in PLACEHOLDERS})
    fps: list[float] | float | None = None
    objects: dict[str, Any] | None = None
    tools: str | None = None
    unread: list[str] = field(default_factory=list)


def is_missing(value: Any) -> bool:
    """Return whether a value stands for nothing: None, NaN, "", or a list or object of nothing, as tables fill gaps."""
    if value is None or value == "" or value == []:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, dict) and all(each is None for each in value.values())


def shown(value: Any) -> str:
    """Return a value as a message shows it: one line, at most 60 characters."""
    try:
        # A long text or a long list is not written out in full to show its beginning.
        text = repr(value[:60] if isinstance(value, str | bytes | list) else value)
    # Nested too deeply, or a whole number of too many digits.
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."

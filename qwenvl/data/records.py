"""Data model of one training sample: a record and its turns."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a chat; `text` has one `<image>` or `<video>` for each medium of the turn.

    `thought` is reasoning that the record gives separately from the text. A turn that is not `supervised` is context
    only. `tool_calls` is a JSON list in the OpenAI form.
    """

    role: Literal["system", "user", "assistant", "tool"]
    text: str
    thought: str | None = None
    supervised: bool = True
    tool_calls: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One training sample: `images` and `videos` are absolute paths in the order of their placeholders.

    A video may be a list of frames, which is a file as well (see `qwenvl.data.media.frames`). `tools` is the JSON list
    of functions that the model may call. `row` counts rows (or JSONL lines, or the items of a pack) from 0;
    `location` names it as an editor of the file counts.
    """

    source: str
    row: int
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    location: str | None = None
    tools: str | None = None

    @property
    def full_location(self) -> str:
        """File and location of this record, such as "train.json row 12" or "train.jsonl line 13"."""
        location = f"row {self.row}" if self.location is None else self.location
        return f"{self.source} {location}"

"""Owns the step from a checked record to the chat messages that the processor's chat template reads."""

import re
from typing import Any

from qwenvl.data.annotations import Record, Turn

_PLACEHOLDER = re.compile(r"<(image|video)>")


def to_messages(record: Record) -> list[dict[str, Any]]:
    """Return the record as chat messages whose content is a list of `{"type": "image" | "video" | "text", ...}` parts.

    The media themselves are not in the messages: `record.images` and `record.videos` have them in the parts' order.
    White space around a user's text and beside a placeholder is left out, as upstream does, so that a sample written
    "<image>\\nDescribe it." becomes the same tokens as a picture and "Describe it." sent to the model in a chat.
    """
    return [{"role": turn.role, "content": _content(turn)} for turn in record.turns]


def _content(turn: Turn) -> list[dict[str, str]]:
    if turn.role != "user":
        return [{"type": "text", "text": turn.text}]
    parts = []
    # Splitting at a captured group gives texts at even places and the captured kinds at odd ones.
    for place, piece in enumerate(_PLACEHOLDER.split(turn.text)):
        if place % 2:
            parts.append({"type": piece})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts

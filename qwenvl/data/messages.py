"""Convert a checked record to the chat messages that the processor's chat template reads."""

import json
import re
from typing import Any

from qwenvl.data.annotations import Record, Turn

_PLACEHOLDER = re.compile(r"<(image|video)>")


def to_messages(record: Record) -> list[dict[str, Any]]:
    r"""Return the record as chat messages whose content is a list of `{"type": "image" | "video" | "text", ...}` parts.

    The messages contain no media: `record.images` and `record.videos` list them in the order of the parts. White space
    around a user's text and next to a placeholder is stripped, as upstream does, so that a sample written
    "<image>\nDescribe it." becomes the same tokens as an image and "Describe it." sent to the model in a chat.
    A thought is the message's `reasoning_content`, and calls are its `tool_calls`, as in templates and servers.
    """
    return [_message(turn) for turn in record.turns]


def tools_of(record: Record) -> list[dict[str, Any]] | None:
    """Return the functions that the model may call, or None."""
    return None if record.tools is None else json.loads(record.tools)


def calls_of(turn: Turn) -> list[dict[str, Any]]:
    """Return the calls of a turn; arguments that are JSON text become objects, as servers render them."""
    calls = [] if turn.tool_calls is None else json.loads(turn.tool_calls)
    return [_parse_arguments(call) for call in calls]


def turn_texts(turn: Turn) -> list[str]:
    """Return the text parts of a turn's message, in order and without the media between them."""
    return [part["text"] for part in _content(turn) if part["type"] == "text"]


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": _content(turn)}
    if turn.thought is not None:
        message["reasoning_content"] = turn.thought
    if turn.tool_calls is not None:
        message["tool_calls"] = calls_of(turn)
    return message


def _content(turn: Turn) -> list[dict[str, str]]:
    text = turn.text
    if turn.role != "user" and (turn.role != "tool" or _PLACEHOLDER.search(text) is None):
        # An empty part next to tool calls would be rendered as text.
        return [{"type": "text", "text": text}] if text or turn.role != "assistant" else []
    if "<image>" not in text and "<video>" not in text:
        text = text.strip()
        return [{"type": "text", "text": text}] if text else []
    parts = []
    # Splitting at a captured group gives texts at even indices and the captured kinds at odd ones.
    for index, piece in enumerate(_PLACEHOLDER.split(text)):
        if index % 2:
            parts.append({"type": piece})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _parse_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    if not isinstance(arguments, dict):
        return call
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else function

"""Read one turn of any dialect: its role, text, thought and calls, and whether it is supervised."""

import json
from typing import Any

from qwenvl.data.dialects.neutral import InvalidRecordError, format_value, is_missing
from qwenvl.data.dialects.parts import PartMedia, read_parts
from qwenvl.data.dialects.tools import read_calls
from qwenvl.data.dialects.unread import note_unread
from qwenvl.data.records import Turn

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
# Their text is the call itself, as JSON.
_CALL_ROLES = frozenset(("function_call", "tool_call"))
_PLAIN_KEYS = (frozenset(("from", "value")), frozenset(("role", "content")))
# Three names for the same field, all in use.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_SWITCHES = ("loss", "weight", "loss_scale")
_READ_KEYS = frozenset(("from", "value", "role", "content", "tool_calls", "function_call", *_THOUGHTS, *_SWITCHES))


def read_turn(raw: Any, number: int, media: PartMedia, unread: list[str]) -> Turn:
    """Return the turn; the media of its parts are added to `media`, and keys that are not read to `unread`."""
    if not isinstance(raw, dict):
        raise InvalidRecordError(f"turn {number} is {format_value(raw)}, expected an object with `from` and `value`")
    name, content = _either(raw, "from", "role", number), _either(raw, "value", "content", number)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise InvalidRecordError(f"turn {number} has the role {format_value(name)}, expected one of {', '.join(ROLES)}")
    if isinstance(content, list):
        content = read_parts(content, number, media, unread)
    if isinstance(content, str) and raw.keys() in _PLAIN_KEYS and name not in _CALL_ROLES:
        return Turn(role, content.strip() if role == "assistant" else content)
    return _detailed_turn(raw, name, content, number, unread)


def join_calls(turns: list[Turn]) -> list[Turn]:
    """Return the turns with each call merged into the answer, or the call, that it directly follows.

    ms-swift writes parallel calls as one turn each; the chat template expects them in one.
    """
    if all(turn.tool_calls is None for turn in turns):
        return turns
    joined: list[Turn] = []
    for number, turn in enumerate(turns):
        before = joined[-1] if joined else None
        if before is None or before.role != "assistant" or turn.tool_calls is None or turn.text or turn.thought:
            joined.append(turn)
            continue
        if before.supervised != turn.supervised:
            raise InvalidRecordError(f"turn {number} continues a turn with another `loss`: make them equal")
        calls = json.loads(before.tool_calls or "[]") + json.loads(turn.tool_calls)
        text = json.dumps(calls, ensure_ascii=False)
        joined[-1] = Turn("assistant", before.text, before.thought, before.supervised, text)
    return joined


def _either(raw: dict[str, Any], first: str, second: str, number: int) -> Any:
    """Return the value of one of two keys; tables that mix dialects have both, one of them empty."""
    if second not in raw or raw[second] is None:
        return raw.get(first)
    if raw.get(first) is not None and raw[first] != raw[second]:
        raise InvalidRecordError(f"turn {number} has both `{first}` and `{second}`: keep one of the two")
    return raw[second]


def _detailed_turn(raw: dict[str, Any], name: str, content: Any, number: int, unread: list[str]) -> Turn:
    role = ROLES[name]
    note_unread(raw, _READ_KEYS, "turns", unread)
    # `function_call` is the older form of `tool_calls` in OpenAI's records.
    calls = read_calls(raw.get("tool_calls"), number) + read_calls(raw.get("function_call"), number)
    if name in _CALL_ROLES:
        calls, content = calls + read_calls(content, number), ""
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise InvalidRecordError(f"turn {number} has the content {format_value(content)}, expected a text")
    thought = _read_thought(raw, number)
    supervised = [_read_switch(raw[key], key, number) for key in _SWITCHES if not is_missing(raw.get(key))]
    if role != "assistant":
        if thought or calls:
            raise InvalidRecordError(f"turn {number} is of {name} and has a thought or tool calls: only answers may")
        if raw.get("loss") is True:
            raise InvalidRecordError(
                f"turn {number} is of {name} and has `loss`: only answers are supervised; delete it"
            )
        return Turn(role, content)
    if len(set(supervised)) > 1:
        raise InvalidRecordError(f"turn {number} is marked both as supervised and as not supervised: keep one key")
    text = json.dumps(calls, ensure_ascii=False) if calls else None
    return Turn("assistant", content.strip(), thought, all(supervised), text)


def _read_thought(raw: dict[str, Any], number: int) -> str | None:
    given = [raw[key] for key in _THOUGHTS if not is_missing(raw.get(key))]
    if any(not isinstance(thought, str) for thought in given) or len(set(map(str, given))) > 1:
        raise InvalidRecordError(f"turn {number} has the thought {format_value(given)}, expected one text")
    return given[0].strip() or None if given else None


def _read_switch(value: Any, key: str, number: int) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise InvalidRecordError(f"turn {number} has the {key} {format_value(value)}, expected true or false (1 or 0)")
    return bool(value)

"""Read the functions that a record offers and the calls of them, in the forms of OpenAI, LLaMA-Factory and ms-swift."""

import json
from typing import Any

from qwenvl.data.dialects.neutral import InvalidRecordError, format_value, is_missing


def read_tools(value: Any) -> str | None:
    """Return a record's `tools` as a JSON list of `{"type": "function", "function": {...}}`, or None for none."""
    if is_missing(value):
        return None
    tools = _parse_json(value, "`tools`")
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise InvalidRecordError(f"`tools` is {format_value(value)}, expected a list of functions, or its JSON text")
    wrapped = [_wrap_function(_parse_json(tool, "a tool"), "a tool") for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False) if wrapped else None


def read_calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Return the calls of a turn in the OpenAI form; their arguments stay as they are, a text or an object."""
    if is_missing(value):
        return []
    what = f"a tool call of turn {number}"
    calls = _parse_json(value, what)
    if not isinstance(calls, list):
        calls = [calls]
    read = []
    for call in calls:
        call = _wrap_function(_parse_json(call, what), what)
        arguments = call["function"].get("arguments")
        if isinstance(arguments, str):
            _parse_json(arguments, f"the arguments of {what}")
        elif not isinstance(arguments, dict):
            raise InvalidRecordError(
                f"{what} has the arguments {format_value(arguments)}, expected an object or its JSON text"
            )
        read.append(call)
    return read


def _wrap_function(value: Any, what: str) -> dict[str, Any]:
    """Return a function, or a call of one, in the OpenAI form; other tools write only the inner object."""
    if isinstance(value, dict) and not is_missing(value.get("function")):
        inner, wrapped = value["function"], {"type": "function", **value}
    else:
        inner, wrapped = value, {"type": "function", "function": value}
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise InvalidRecordError(f"{what} is {format_value(value)}, expected an object with the `name` of a function")
    return wrapped


def _parse_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    # Malformed text, or an integer with too many digits.
    except ValueError:
        raise InvalidRecordError(f"{what} is {format_value(value)}, which is not JSON: correct it") from None

"""Read JSON files, and write JSON that every reader accepts: UTF-8, and values that have no form in JSON."""

import base64
import json
from pathlib import Path
from typing import Any, TextIO

from qwenvl.errors import UserError

_FOUND = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
_FOUND |= {bool: "a boolean", type(None): "null"}
_EXPECTED = {dict: "object", list: "list"}


def read_json(path: str | Path, *, expected: type = dict, name: str = "", remedy: str = "restore the file") -> Any:
    """Return the content of a JSON file in UTF-8.

    Args:
        path: The file.
        expected: The type of the top level: `dict`, `list`, or `object` for any.
        name: What messages call the file, such as a flag with its value; the path if empty.
        remedy: What messages tell the user to do.

    Raises:
        UserError: In one line, for a file that is missing, unreadable or not JSON, or has another top level.
    """
    name = name or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot read the file ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not valid JSON (not UTF-8: {error.reason}); {remedy}") from None
    return parse_json(text, expected=expected, name=name, remedy=remedy)


def parse_json(text: str, *, expected: type = dict, name: str, remedy: str) -> Any:
    """Return the value of a JSON text that the user gave as `name`; raises `UserError` as `read_json` does."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(value, expected):
        raise UserError(f"{name}: holds {_FOUND[type(value)]}, expected a JSON {_EXPECTED[expected]}; {remedy}")
    return value


def json_default(value: Any) -> str:
    """Return a string for a value that has no form in JSON: base64 for bytes."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def encoded_json(value: Any) -> str:
    """Return `value` as JSON text that can be encoded as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, default=json_default)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, or a file name that is not UTF-8, needs an escape.
        return json.dumps(value, default=json_default)
    return text


def write_json(stream: TextIO, value: Any) -> None:
    """Write `value` as indented JSON."""
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write("\n")


class JsonListWriter:
    """Write a JSON list into an open stream, one record per line; `count` is its current length."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.count = 0

    def write(self, encoded: str) -> None:
        """Append a record that is already JSON text."""
        self._stream.write(f"{',' if self.count else '['}\n{encoded}")
        self.count += 1

    def close(self) -> None:
        """End the list."""
        self._stream.write("\n]\n" if self.count else "[]\n")

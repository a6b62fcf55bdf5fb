"""Write JSON in forms that every reader takes: UTF-8, one record a line, and values that JSON has no form for."""

import base64
import json
from typing import Any, TextIO


def json_default(value: Any) -> str:
    """Return the JSON text of a table's value that JSON has no form for: base64 for bytes."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def encoded_json(value: Any) -> str:
    """Return `value` as JSON that can be written as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, default=json_default)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, or a file name that is not UTF-8, can only be written as an escape.
        return json.dumps(value, default=json_default)
    return text


def write_json(stream: TextIO, value: Any) -> None:
    """Write `value` as indented JSON that a person can read."""
    json.dump(value, stream, indent=2, ensure_ascii=False)
    stream.write("\n")


class JsonListWriter:
    """Writes a JSON list into an open stream, one record a line; `close` ends the list, `count` is its length."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.count = 0

    def write(self, encoded: str) -> None:
        """Append one record that is already JSON."""
        self._stream.write(f"{',' if self.count else '['}\n{encoded}")
        self.count += 1

    def close(self) -> None:
        """End the list."""
        self._stream.write("\n]\n" if self.count else "[]\n")

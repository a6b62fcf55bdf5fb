"""Owns the reading of a JSON list record by record, so that a file larger than memory can be converted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from qwenvl.data.json_rows import whole_number
from qwenvl.errors import UserError

_CHUNK = 1 << 20
_LARGEST_RECORD = 1 << 26


def iter_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (index from 0, value) for each item of the JSON list in `path`; holds one item and one chunk at a time.

    Raises `UserError` for a file that cannot be read, is no UTF-8, is no list, or is malformed (naming the item).
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            yield from _Items(path, stream)
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); give the path of a JSON file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save the file as UTF-8") from None


class _Items:
    """Walks over the items of one list; `_text` is what was read and not yet used."""

    def __init__(self, path: Path, stream: TextIO):
        self._path, self._stream = path, stream
        self._text, self._at, self._ended = "", 0, False
        self._decoder = json.JSONDecoder(parse_int=whole_number)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        index = 0
        if self._next_mark() != "[":
            raise UserError(f"{self._path}: not a JSON list; expected [ as the first character")
        self._at += 1
        closed = self._next_mark() == "]"
        while not closed:
            value = self._value(index)
            mark = self._next_mark()
            if mark not in (",", "]"):
                raise self._malformed(index, "no , or ] after it")
            self._at += 1
            closed = mark == "]"
            yield index, value
            index += 1

    def _value(self, index: int) -> Any:
        self._next_mark()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number near the end of the chunk may go on in the next one: "-1", ".5" or "-1.5", "e+3".
                if end < len(self._text) - 2 or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > _LARGEST_RECORD:
                    raise self._malformed(index, error.msg) from None
            self._read_more()

    def _next_mark(self) -> str:
        """Skip white space; return the character that follows it, or "" at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def _read_more(self) -> None:
        # Twice what is waiting, so that a long item is not parsed again for each chunk.
        chunk = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._text, self._at, self._ended = self._text[self._at :] + chunk, 0, not chunk

    def _malformed(self, index: int, reason: str) -> UserError:
        return UserError(f"{self._path}: item {index} of the list is malformed JSON: {reason}; correct the file there")

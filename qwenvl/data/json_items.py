"""Read a JSON list item by item, with at most one item and one chunk of text in memory.

ijson cannot replace this: it silently keeps the last of repeated keys, and rejects NaN, integers of more than 64 bits
and a byte order mark, all of which `json` reads and a dataset may contain.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
_LARGEST_ITEM = 1 << 26


class MalformedListError(ValueError):
    """Text that cannot be read as a JSON list item by item."""


class JsonItems:
    """The items of the JSON list in a text stream; `decode(text, start)` returns a value and the index of its end.

    Raises `MalformedListError`, also for an item of more than 64 MiB, and anything that `decode` raises except
    `json.JSONDecodeError`. `_text` is the text that was read and not yet decoded.
    """

    def __init__(self, stream: TextIO, decode: Callable[[str, int], tuple[Any, int]], chunk: int = _CHUNK) -> None:
        self._stream, self._decode, self._chunk = stream, decode, chunk
        self._text, self._at, self._ended = "", 0, False

    def __iter__(self) -> Iterator[Any]:
        if self._next_mark() != "[":
            raise MalformedListError("expected [ as the first character")
        self._at += 1
        closed = self._next_mark() == "]"
        self._at += closed
        while not closed:
            value = self._value()
            mark = self._next_mark()
            if mark not in (",", "]"):
                raise MalformedListError("no , or ] after it")
            self._at += 1
            closed = mark == "]"
            yield value
        if self._next_mark():
            raise MalformedListError("more text after the end of the list")

    def _value(self) -> Any:
        self._next_mark()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # A number near the end of the chunk may continue in the next one: "-1", ".5" or "-1.5", "e+3".
                if end < len(self._text) - 2 or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > _LARGEST_ITEM:
                    raise MalformedListError(error.msg) from None
            self._read_more()

    def _next_mark(self) -> str:
        """Skip white space; return the next character, or "" at the end of the text."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def _read_more(self) -> None:
        # Doubles the pending text, so that a long item is not parsed again for every chunk.
        chunk = self._stream.read(max(self._chunk, len(self._text) - self._at))
        self._text, self._at, self._ended = self._text[self._at :] + chunk, 0, not chunk

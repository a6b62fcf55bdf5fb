"""Read a JSON or JSONL file as rows, each with its location in the file."""

import codecs
import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, TextIO

from qwenvl.data.json_items import JsonItems, MalformedListError
from qwenvl.errors import UserError

_GIB = 1 << 30
_CHUNK = 1 << 22
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

_TOO_LONG = "an integer has too many digits: shorten it, or make it a string"
_TOO_DEEP = "a record is nested too deeply to be read: flatten it, or delete it"

OnBadRow = Callable[[str, str], None]


class Row(NamedTuple):
    """One value of an annotation file; `location` names it for readers: "row 0" of a list, "line 1" of JSONL."""

    location: str
    index: int
    value: Any


class _Unusable(NamedTuple):
    """Marker in a row for a value that Python would silently read as something else."""

    reason: str


class _UnusableError(ValueError):
    """JSON that Python would silently read as something else."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def iter_json_rows(path: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield the rows of a JSON list, of JSONL, or of a file with one record; the format is detected from the content.

    A `.json` file may contain JSONL and vice versa; UTF-8 with or without a byte order mark; `.gz` is decompressed.
    Rows are read lazily. `on_bad_row(location, reason)` is called for each malformed line of JSONL, and for each row
    with a repeated key or a number that is too long: the other rows are still read. Raises `UserError` for a file that
    is missing, unreadable, empty, malformed as a whole, or not a list of rows; for a list only after the rows before
    the error.
    """
    shape = _inspect(path)
    if _has_one_value_per_line(path, shape):
        yield from _jsonl_rows(path, on_bad_row)
    elif shape.first_character == "[":
        yield from _list_rows(path, on_bad_row)
    else:
        yield from _document_rows(path, on_bad_row)


def _open_binary(path: str) -> IO[bytes]:
    """Open an annotation file, decompressed if it ends in `.gz`; raises `UserError` unless it is a regular file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"cannot read the annotation file (it is {_kind(status.st_mode)}); give a file", path=path)
        if status.st_size > memory_bytes():
            raise UserError(
                f"{status.st_size / _GIB:,.0f} GiB are more than this machine's memory of "
                f"{memory_bytes() / _GIB:,.0f} GiB; split the file",
                path=path,
            )
        return gzip.open(path) if path.endswith(".gz") else open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("no such annotation file; correct the path or make the file first", path=path) from None
    # ValueError: a path with a null character.
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the annotation file ({reason}); give a readable file", path=path) from None


def memory_bytes() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _whole_number(digits: str) -> int | str:
    """Return a JSON integer as `json` does, or its digits if they are more than Python converts to a number."""
    return digits if len(digits) > sys.get_int_max_str_digits() > 0 else int(digits)


class _Shape(NamedTuple):
    """The first non-space character of a text, and whether its line is followed by more text."""

    first_character: str
    has_more_lines: bool


def _inspect(path: str) -> _Shape:
    """Scan a file in chunks; raises `UserError` unless all of it is UTF-8 text, and not empty."""
    decode = codecs.getincrementaldecoder("utf-8")()
    first, in_first_line, has_more_lines, num_bytes = "", True, False, 0
    for chunk in _chunks(path):
        pending = len(decode.getstate()[0])
        try:
            text = decode.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            kind = " (it looks like UTF-16)" if chunk[:2] in _UTF_16 and not num_bytes else ""
            at = num_bytes - pending + error.start
            raise UserError(f"byte {at} is not UTF-8 text{kind}; save the file as UTF-8", path=path) from None
        if not num_bytes:
            text = text.removeprefix("\ufeff")
        num_bytes += len(chunk)
        if not first:
            text = text.lstrip()
            first = text[:1]
        if first and in_first_line:
            _, line_end, text = text.partition("\n")
            in_first_line = not line_end
        has_more_lines = has_more_lines or bool(not in_first_line and text.strip())
    if not first:
        raise UserError("the annotation file is empty; expected a JSON list of records or JSONL", path=path)
    return _Shape(first, has_more_lines)


def _chunks(path: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, and b"" at its end."""
    num_bytes = 0
    with _open_binary(path) as file, _readable(path):
        while chunk := file.read(_CHUNK):
            num_bytes += len(chunk)
            if num_bytes > memory_bytes():
                raise UserError("decompressed, it is larger than this machine's memory; split the file", path=path)
            yield chunk
    yield b""


@contextmanager
def _open_text(path: str) -> Iterator[TextIO]:
    """Open a file that `_inspect` has checked, as text whose lines end only at a line feed.

    JSON strings may contain the other characters that `str.splitlines` splits at, such as U+2028.
    """
    with io.TextIOWrapper(_open_binary(path), encoding="utf-8-sig", newline="\n") as stream, _readable(path):
        yield stream


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the annotation file ({reason}); give a readable file", path=path) from None


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


def _load(text: str) -> Any:
    """Read JSON; raises `_UnusableError` for a repeated key or a number that is too long for Python."""
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, _UnusableError):
        raise
    # Python converts at most sys.get_int_max_str_digits() digits to an integer.
    except ValueError:
        raise _UnusableError(_TOO_LONG) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _UnusableError(_repeated(pairs))
    return value


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    keys = [key for key, _ in pairs]
    key = next(key for number, key in enumerate(keys) if key in keys[:number])
    return f"the key {key[:60]!r} occurs twice in one object: keep one of the two"


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _marked_object(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Unusable(_repeated(pairs))


def _marked_number(digits: str) -> Any:
    number = _whole_number(digits)
    return number if isinstance(number, int) else _Unusable(_TOO_LONG)


# Replaces each value that cannot be read as it is written by an `_Unusable`.
_MARKING_DECODER = json.JSONDecoder(object_pairs_hook=_marked_object, parse_int=_marked_number)


def _usable(values: list[Any], on_bad_row: OnBadRow) -> Iterator[tuple[int, Any]]:
    for index, value in enumerate(values):
        flaw = _flaw(value)
        if flaw is None:
            yield index, value
        else:
            on_bad_row(f"row {index}", flaw)


def _flaw(value: Any) -> str | None:
    """Return why a value cannot be used, from the first `_Unusable` in it."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Unusable):
            return value.reason
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return None


def _malformed(path: str, error: json.JSONDecodeError) -> UserError:
    return UserError(
        f"malformed JSON at line {error.lineno} column {error.colno}: {_reason(error)}; "
        "expected a JSON list of records, or JSONL with one record per line: correct the file there",
        path=path,
    )


def _reason(error: json.JSONDecodeError) -> str:
    before = error.doc[max(error.pos - 100, 0) : error.pos].rstrip()
    return f"{error.msg} (remove the trailing comma before it?)" if before.endswith(",") else error.msg


def _has_one_value_per_line(path: str, shape: _Shape) -> bool:
    is_object = shape.first_character == "{"
    if not shape.has_more_lines or (is_object and path.removesuffix(".gz").endswith(".jsonl")):
        return is_object
    with _open_text(path) as lines:
        first_line = next(line for line in lines if line.strip())
    try:
        _load(first_line.lstrip().removesuffix("\n"))
    except json.JSONDecodeError:
        return False
    # It is a value nevertheless, which is reported with its line.
    except (_UnusableError, RecursionError):
        return True
    return True


def _jsonl_rows(path: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    with _open_text(path) as lines:
        for index, line in enumerate(lines):
            if not line.strip():
                continue
            location = f"line {index + 1}"
            try:
                value = _load(line.removesuffix("\n"))
            except json.JSONDecodeError as error:
                reason = f"malformed JSON at column {error.colno}: {_reason(error)}; correct or delete the line"
                on_bad_row(location, reason)
            except _UnusableError as error:
                on_bad_row(location, error.reason)
            except RecursionError:
                on_bad_row(location, _TOO_DEEP)
            else:
                yield Row(location, index, value)


def _list_rows(path: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield the items of a list; unusable items are reported at its end, when all of it is known to be valid JSON."""
    flaws: list[tuple[str, str]] = []
    index = -1
    try:
        with _open_text(path) as stream:
            for index, value in enumerate(JsonItems(stream, _decode_item)):
                if isinstance(value, _Unusable):
                    flaws.append((f"row {index}", value.reason))
                else:
                    yield Row(f"row {index}", index, value)
    except MalformedListError:
        # Line and column of the error need the whole text; and an item may just be very long.
        flaws.clear()
        rest = [*_document_rows(path, lambda *flaw: flaws.append(flaw))]
        yield from (row for row in rest if row.index > index)
    except RecursionError:
        raise UserError(_TOO_DEEP, path=path) from None
    for location, reason in flaws:
        on_bad_row(location, reason)


def _decode_item(text: str, start: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    # Raised for a number that is too long, or as `_UnusableError`.
    except ValueError:
        value, end = _MARKING_DECODER.raw_decode(text, start)
        return _Unusable(_flaw(value) or _TOO_LONG), end


def _document_rows(path: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    """Yield the rows of a file that is read as a whole."""
    with _open_text(path) as stream:
        text = stream.read()
    marked = False
    try:
        try:
            document = _load(text)
        except _UnusableError:
            document, marked = _MARKING_DECODER.decode(text), True
    except json.JSONDecodeError as error:
        raise _malformed(path, error) from None
    except RecursionError:
        raise UserError(_TOO_DEEP, path=path) from None
    if isinstance(document, dict | _Unusable):
        document = [document]
    if not isinstance(document, list):
        raise UserError(
            f"got a JSON {type(document).__name__}, expected a list of records: correct the file", path=path
        )
    for index, value in _usable(document, on_bad_row) if marked else enumerate(document):
        yield Row(f"row {index}", index, value)

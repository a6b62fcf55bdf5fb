"""Read a JSON or JSONL file into rows, each with the place in the file where it stands."""

import base64
import gzip
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from qwenvl.errors import UserError

_GIB = 1 << 30
_CHUNK = 1 << 24
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

_TOO_LONG = "it holds a whole number of too many digits: shorten it, or make it a text"
_TOO_DEEP = "a record is nested too deeply to be read: make it flat, or delete it"

OnBadRow = Callable[[str, str], None]


class Row(NamedTuple):
    """One value of an annotation file; `place` names it as a reader finds it: "row 0" of a list, "line 1" of JSONL."""

    place: str
    index: int
    value: Any


class _Unusable(NamedTuple):
    """What stands in a row in the place of a value that Python reads, but not as it is meant."""

    reason: str


class _UnusableError(ValueError):
    """JSON that Python reads, but not as it is meant; the message says why."""


def read_json_rows(path: str, on_bad_row: OnBadRow) -> list[Row]:
    """Read the rows of a JSON list, of JSONL, or of a file with one record, told apart by what the file holds.

    A file called `.json` may hold JSONL and the other way round; UTF-8 with or without a byte order mark; `.gz` is
    unpacked. `on_bad_row(place, reason)` is called for each malformed line of JSONL, and for each row with a repeated
    key or a number that is too long: the others can still be read. Raises `UserError` for a file that is missing,
    unreadable, empty, malformed as a whole, or no list of rows.
    """
    text = _read_text(path)
    if _has_one_value_per_line(path, text):
        return list(_jsonl_rows(text, on_bad_row))
    marked = False
    try:
        try:
            document = _load(text)
        except _UnusableError:
            document, marked = _load_marked(path, text), True
    except json.JSONDecodeError as error:
        raise _malformed(path, error) from None
    except RecursionError:
        raise UserError(f"{path}: {_TOO_DEEP}") from None
    if isinstance(document, dict | _Unusable):
        document = [document]
    if not isinstance(document, list):
        raise UserError(f"{path}: got a JSON {type(document).__name__}, expected a list of records: correct the file")
    values = _usable(document, on_bad_row) if marked else enumerate(document)
    return [Row(f"row {index}", index, value) for index, value in values]


def open_binary(path: str) -> IO[bytes]:
    """Open an annotation file, unpacked if it ends in `.gz`; raises `UserError` where it is no file of bounded size."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: cannot read the annotation file (it is {_kind(status.st_mode)}); give a file")
        if status.st_size > memory_bytes():
            raise UserError(
                f"{path}: {status.st_size / _GIB:,.0f} GiB are more than this machine's memory of "
                f"{memory_bytes() / _GIB:,.0f} GiB; split the file"
            )
        return gzip.open(path) if path.endswith(".gz") else open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such annotation file; correct the path or make the file first") from None
    # ValueError: a path with a null character.
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read the annotation file ({reason}); give a readable file") from None


def memory_bytes() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def whole_number(digits: str) -> int | str:
    """Return a JSON integer as `json` would, or its digits where they are more than Python turns into a number."""
    return digits if len(digits) > sys.get_int_max_str_digits() > 0 else int(digits)


def json_default(value: Any) -> str:
    """Return the text that stands in JSON for a value of a table that JSON has no form for: base64 for bytes."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _read_text(path: str) -> str:
    data = bytearray()
    with open_binary(path) as file:
        try:
            while chunk := file.read(_CHUNK):
                data += chunk
                if len(data) > memory_bytes():
                    raise UserError(f"{path}: unpacked it is larger than this machine's memory; split the file")
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: cannot read the annotation file ({reason}); give a readable file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = " (it looks like UTF-16)" if data[:2] in _UTF_16 else ""
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text{kind}; save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the annotation file is empty; expected a JSON list of records or JSONL")
    return text


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


def _load(text: str) -> Any:
    """Read JSON; raises `_UnusableError` for a repeated key or a number that is too long for Python."""
    try:
        return _DECODER.decode(text)
    except (json.JSONDecodeError, _UnusableError):
        raise
    # Python turns no more than sys.get_int_max_str_digits() digits into a whole number.
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
    return f"the key {key[:60]!r} stands twice in one object: keep one of the two"


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _load_marked(path: str, text: str) -> Any:
    """Read a JSON document again, with an `_Unusable` in the place of each value that cannot be taken as it stands."""

    def marked_object(pairs: list[tuple[str, Any]]) -> Any:
        value = dict(pairs)
        return value if len(value) == len(pairs) else _Unusable(_repeated(pairs))

    def marked_number(digits: str) -> Any:
        number = whole_number(digits)
        return number if isinstance(number, int) else _Unusable(_TOO_LONG)

    try:
        return json.loads(text, object_pairs_hook=marked_object, parse_int=marked_number)
    except json.JSONDecodeError as error:
        raise _malformed(path, error) from None


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
        f"{path}: malformed JSON at line {error.lineno} column {error.colno}: {_reason(error)}; "
        "expected a JSON list of records, or JSONL with one record per line: correct the file there"
    )


def _reason(error: json.JSONDecodeError) -> str:
    before = error.doc[max(error.pos - 100, 0) : error.pos].rstrip()
    return f"{error.msg} (is the comma before it one too many?)" if before.endswith(",") else error.msg


def _has_one_value_per_line(path: str, text: str) -> bool:
    first_line, _, rest = text.lstrip().partition("\n")
    if not rest.strip() or (first_line.startswith("{") and path.removesuffix(".gz").endswith(".jsonl")):
        return first_line.startswith("{")
    try:
        _load(first_line)
    except json.JSONDecodeError:
        return False
    # A value all the same, which is reported in its line.
    except (_UnusableError, RecursionError):
        return True
    return True


def _jsonl_rows(text: str, on_bad_row: OnBadRow) -> Iterator[Row]:
    # Not str.splitlines: it also cuts at U+2028 and other characters that JSON strings may hold.
    for index, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        place = f"line {index + 1}"
        try:
            yield Row(place, index, _load(line))
        except json.JSONDecodeError as error:
            on_bad_row(place, f"malformed JSON at column {error.colno}: {_reason(error)}; correct or delete the line")
        except _UnusableError as error:
            on_bad_row(place, str(error))
        except RecursionError:
            on_bad_row(place, _TOO_DEEP)

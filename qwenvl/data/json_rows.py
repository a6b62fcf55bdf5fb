"""Owns the reading of a JSON or JSONL file into rows, each with the place in the file where it stands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.errors import UserError


class Row(NamedTuple):
    """One value of an annotation file; `place` names it as a reader finds it: "row 0" of a list, "line 1" of JSONL."""

    place: str
    index: int
    value: Any


def read_rows(path: str, on_bad_line: Callable[[str, str], None]) -> list[Row]:
    """Read the rows of a JSON list, of JSONL, or of a file with one record, told apart by what the file holds.

    A file called `.json` may hold JSONL and the other way round; UTF-8 with or without a byte order mark.
    `on_bad_line(place, reason)` is called for each malformed line of JSONL: the other lines can still be read.
    Raises `UserError` for a file that is missing, unreadable, empty, malformed as a whole, or no list of rows.
    """
    text = _read_text(path)
    if _has_one_value_per_line(path, text):
        return list(_jsonl_rows(text, on_bad_line))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: malformed JSON at line {error.lineno} column {error.colno}: {error.msg}; "
            "expected a JSON list of records, or JSONL with one record per line: correct the file there"
        ) from None
    if isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise UserError(f"{path}: got a JSON {type(document).__name__}, expected a list of records: correct the file")
    return [Row(f"row {index}", index, value) for index, value in enumerate(document)]


def _read_text(path: str) -> str:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; correct the path or make the file first") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotation file ({error.strerror}); give a readable file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the annotation file is empty; expected a JSON list of records or JSONL")
    return text


def _has_one_value_per_line(path: str, text: str) -> bool:
    first_line, _, rest = text.lstrip().partition("\n")
    if not rest.strip() or (first_line.startswith("{") and path.endswith(".jsonl")):
        return first_line.startswith("{")
    try:
        json.loads(first_line)
    except json.JSONDecodeError:
        return False
    return True


def _jsonl_rows(text: str, on_bad_line: Callable[[str, str], None]) -> Iterator[Row]:
    # Not str.splitlines: it also cuts at U+2028 and other characters that JSON strings may hold.
    for index, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        place = f"line {index + 1}"
        try:
            yield Row(place, index, json.loads(line))
        except json.JSONDecodeError as error:
            on_bad_line(place, f"malformed JSON at column {error.colno}: {error.msg}; correct or delete the line")

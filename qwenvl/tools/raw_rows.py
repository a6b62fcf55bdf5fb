"""Owns the second reading of an annotation file: its rows as they stand there, one at a time, and the sound ones."""

import io
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, TextIO

from qwenvl.data.json_rows import Row, json_default, open_binary, whole_number
from qwenvl.data.rows import read_rows
from qwenvl.data.table_rows import is_table
from qwenvl.tools.cli import JsonListWriter
from qwenvl.tools.json_stream import iter_json_list


def iter_rows(path: str, by_line: bool) -> Iterator[Row]:
    """Yield the rows that `read_rows` gives, under the same places, without holding the whole file.

    `by_line` says that the file is JSONL, as the places of its records show ("line 3"). Malformed lines are left out.
    """
    if by_line:
        yield from _iter_lines(path)
    elif not is_table(path) and not path.endswith(".gz") and _is_list(path):
        for index, value in iter_json_list(Path(path)):
            yield Row(f"row {index}", index, value)
    else:
        yield from read_rows(path, lambda place, reason: None)


def iter_items(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield the place and value of each record of a row, which is one record or a pack of them."""
    if not isinstance(row.value, list):
        yield row.place, row.value
        return
    for index, value in enumerate(row.value):
        yield f"{row.place} item {index}", value


def write_sound_rows(stream: TextIO, rows: Iterator[Row], sound: Set[str]) -> int:
    """Write the records whose places are in `sound` as a JSON list, packs as inner lists; return how many."""
    writer = JsonListWriter(stream)
    count = 0
    for row in rows:
        kept = [value for place, value in iter_items(row) if place in sound]
        if kept:
            writer.write(_encoded(kept if isinstance(row.value, list) else kept[0]))
            count += len(kept)
    writer.close()
    return count


def _iter_lines(path: str) -> Iterator[Row]:
    # As in `read_rows`, a line ends at a line feed alone: JSON strings may hold other separators.
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="\n") as stream:
        for index, line in enumerate(stream):
            try:
                yield Row(f"line {index + 1}", index, json.loads(line, parse_int=whole_number))
            except (json.JSONDecodeError, RecursionError):
                continue


def _is_list(path: str) -> bool:
    with open(path, encoding="utf-8-sig") as stream:
        while (mark := stream.read(1)).isspace():
            pass
    return mark == "["


def _encoded(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=json_default)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, in a key that training does not read, can be written as an escape only.
        return json.dumps(value, default=json_default)
    return text

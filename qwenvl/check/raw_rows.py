"""Read the original rows of an annotation file one at a time, and write the valid ones."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from qwenvl.data.annotations import Record
from qwenvl.data.json_rows import Row, open_binary, whole_number
from qwenvl.data.json_stream import iter_json_list
from qwenvl.data.rows import read_rows
from qwenvl.data.table_rows import is_table
from qwenvl.utils.json_text import JsonListWriter, encoded_json

# Keys of a row whose value is the path of an image or a video, or a list of such paths.
_PATH_KEYS = ("image", "images", "image_url", "video", "videos", "video_url", "frames", "path", "url")


def iter_rows(path: str, by_line: bool) -> Iterator[Row]:
    """Yield the rows of `read_rows`, with the same locations, without keeping the whole file in memory.

    `by_line` means that the file is JSONL, as the locations of its records show ("line 3"). Malformed lines, which
    `read_rows` reports, are left out.
    """
    if by_line:
        yield from _iter_lines(path)
    elif not is_table(path) and not path.endswith(".gz") and _is_list(path):
        for index, value in iter_json_list(Path(path)):
            yield Row(f"row {index}", index, value)
    else:
        yield from read_rows(path, lambda location, reason: None)


def iter_items(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield the location and value of each record of a row, which is one record or a pack of records."""
    if not isinstance(row.value, list):
        yield row.location, row.value
        return
    for index, value in enumerate(row.value):
        yield f"{row.location} item {index}", value


def write_valid_rows(
    stream: TextIO, rows: Iterator[Row], valid: Mapping[str, Record], roots: Iterable[str], folder: str
) -> int:
    """Write the records whose locations are in `valid` as a JSON list, with packs as inner lists; return their number.

    Media paths relative to one of the `roots` are rewritten to be valid from `folder`: relative for media in it, else
    absolute.
    """
    writer, roots = JsonListWriter(stream), list(roots)
    count = 0
    for row in rows:
        kept = [rebase_row(value, valid[each], roots, folder) for each, value in iter_items(row) if each in valid]
        if kept:
            writer.write(encoded_json(kept if isinstance(row.value, list) else kept[0]))
            count += len(kept)
    writer.close()
    return count


def rebase_row(value: Any, record: Record, roots: Iterable[str], folder: str) -> Any:
    """Return the row of a record with media paths that were relative to one of the `roots` made valid from `folder`."""
    folder, media = os.path.abspath(folder), {*record.images, *record.videos}

    def rebase(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: rebase(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [rebase(each, key) for each in value]
        if not isinstance(value, str) or key not in _PATH_KEYS or os.path.isabs(value) or "\0" in value:
            return value
        # The record does not list the frames of a video, a folder of frames, and images of turns without loss.
        found = (path for path in (_absolute(root, value) for root in roots) if path in media or os.path.exists(path))
        target = next(found, None)
        if target is None or _absolute(folder, value) == target:
            return value
        return os.path.relpath(target, folder) if target.startswith(os.path.join(folder, "")) else target

    return rebase(value, "")


def _absolute(folder: str, path: str) -> str:
    return os.path.abspath(os.path.join(folder, path))


def _iter_lines(path: str) -> Iterator[Row]:
    # As in `read_rows`, only a line feed ends a line: JSON strings may contain other separators.
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

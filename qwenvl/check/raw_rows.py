"""Read the original rows of an annotation file one at a time, and write the valid ones."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from qwenvl.data.annotations import Record
from qwenvl.data.json_rows import Row
from qwenvl.data.rows import stream_rows
from qwenvl.utils.json_text import JsonListWriter, encoded_json

# Keys of a row whose value is the path of an image or a video, or a list of such paths.
_PATH_KEYS = ("image", "images", "image_url", "video", "videos", "video_url", "frames", "path", "url")


def iter_rows(path: str) -> Iterator[Row]:
    """Yield the original rows of an annotation file, without those that cannot be read: they were reported before."""
    return stream_rows(path, lambda location, reason: None)


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

"""Read an annotation file once more: its rows as they stand there, one at a time, and write the sound ones."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

from qwenvl.data.annotations import Record
from qwenvl.data.json_rows import Row
from qwenvl.data.rows import stream_rows
from qwenvl.utils.json_text import JsonListWriter, encoded_json

# Keys under which a row gives the path of an image or a video, itself or in a list.
_PATH_KEYS = ("image", "images", "image_url", "video", "videos", "video_url", "frames", "path", "url")


def iter_rows(path: str) -> Iterator[Row]:
    """Yield the rows of an annotation file once more, without those that cannot be read: they were reported before."""
    return stream_rows(path, lambda location, reason: None)


def iter_items(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield the place and value of each record of a row, which is one record or a pack of them."""
    if not isinstance(row.value, list):
        yield row.location, row.value
        return
    for index, value in enumerate(row.value):
        yield f"{row.location} item {index}", value


def write_sound_rows(
    stream: TextIO, rows: Iterator[Row], sound: Mapping[str, Record], roots: Iterable[str], folder: str
) -> int:
    """Write the records whose places are in `sound` as a JSON list, packs as inner lists; return how many.

    Media paths that are relative to one of the `roots` are written so that they are found from `folder`, too: relative
    where they lie in it, else absolute.
    """
    writer, roots = JsonListWriter(stream), list(roots)
    count = 0
    for row in rows:
        kept = [moved_row(value, sound[place], roots, folder) for place, value in iter_items(row) if place in sound]
        if kept:
            writer.write(encoded_json(kept if isinstance(row.value, list) else kept[0]))
            count += len(kept)
    writer.close()
    return count


def moved_row(value: Any, record: Record, roots: Iterable[str], folder: str) -> Any:
    """Return a record's row with its media paths, relative to one of the `roots`, as they are found from `folder`."""
    folder, media = os.path.abspath(folder), {*record.images, *record.videos}

    def moved(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: moved(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [moved(each, key) for each in value]
        if not isinstance(value, str) or key not in _PATH_KEYS or os.path.isabs(value) or "\0" in value:
            return value
        # What the record does not list: frames of a video, a folder of them, images of turns that are not supervised.
        found = (path for path in (_joined(root, value) for root in roots) if path in media or os.path.exists(path))
        meant = next(found, None)
        if meant is None or _joined(folder, value) == meant:
            return value
        return os.path.relpath(meant, folder) if meant.startswith(os.path.join(folder, "")) else meant

    return moved(value, "")


def _joined(folder: str, path: str) -> str:
    return os.path.abspath(os.path.join(folder, path))

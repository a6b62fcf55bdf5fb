"""Owns the sizes of pictures and videos, read from their headers and remembered on disk from run to run."""

import gc
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.frames import frames_info, frames_stamp, is_frame_list
from qwenvl.data.images import image_size
from qwenvl.data.media_store import DEFAULT_CACHE_DIR
from qwenvl.data.videos import VideoInfo, video_info
from qwenvl.errors import UserError

logger = logging.getLogger(__name__)

CACHE_FILE = "media_sizes.json"
# Reading headers waits for the disk, above all for one on the network, more than for the processor.
_THREADS = 16
_CHUNK = 256


class ImageSize(NamedTuple):
    """Height and width in pixels of an upright picture."""

    height: int
    width: int


class Unreadable(NamedTuple):
    """Why the header of a file could not be read; the path is not part of the reason."""

    reason: str


MediaSizes = dict[str, ImageSize | VideoInfo | Unreadable]


def scan_media_sizes(images: Iterable[str], videos: Iterable[str], cache_dir: str | None = None) -> MediaSizes:
    """Return the size of every file, from the cache where the file's time and length are those of the last reading.

    Files that cannot be read are `Unreadable` and are tried again the next time.
    """
    cache_path = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser() / CACHE_FILE
    cached = _read_cache(cache_path)
    image_paths, video_paths = sorted(set(images)), sorted(set(videos))
    with ThreadPoolExecutor(_THREADS) as pool:
        stamps = dict(zip([*image_paths, *video_paths], _spread(pool, _stamp, image_paths + video_paths), strict=True))
        sizes: MediaSizes = {}
        num_read = 0
        for paths, read, kind in ((image_paths, _read_image, ImageSize), (video_paths, _read_video, VideoInfo)):
            known = {path: _recall(cached.get(path), stamps[path], kind) for path in paths}
            new = [path for path, size in known.items() if size is None]
            sizes |= known | dict(zip(new, _spread(pool, read, new), strict=True))
            num_read += len(new)
    if any(isinstance(size, Unreadable) for size in sizes.values()):
        # An error may hold on to a decord reader. Collected only in a forked DataLoader worker, the reader would wait
        # there for ever for its decoder thread, which a fork does not copy.
        gc.collect()
    if num_read:
        logger.info("read the size of %d media files from their headers", num_read)
        entries = {path: [*stamps[path], *size] for path, size in sizes.items() if not isinstance(size, Unreadable)}
        _write_cache(cache_path, cached | entries)
    return sizes


def _spread(pool: ThreadPoolExecutor, function: Callable[[str], Any], paths: list[str]) -> list[Any]:
    """Map over the paths with few tasks, because a task costs about as much as reading a cached header."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    return [value for part in pool.map(lambda chunk: [function(path) for path in chunk], chunks) for value in part]


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        if is_frame_list(path):
            return frames_stamp(path)
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _recall(entry: list | None, stamp: tuple[int, int] | None, kind: type) -> ImageSize | VideoInfo | None:
    if entry is None or stamp is None or tuple(entry[:2]) != stamp or len(entry) != 2 + len(kind._fields):
        return None
    return kind(*entry[2:])


def _read_image(path: str) -> ImageSize | Unreadable:
    try:
        return ImageSize(*image_size(path))
    except UserError as error:
        return Unreadable(str(error).removeprefix(f"{path}: "))


def _read_video(path: str) -> VideoInfo | Unreadable:
    try:
        return frames_info(path) if is_frame_list(path) else video_info(path)
    except UserError as error:
        return Unreadable(str(error).removeprefix(f"{path}: "))


def _read_cache(path: Path) -> dict[str, list]:
    try:
        cached = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _write_cache(path: Path, entries: dict[str, list]) -> None:
    """Replace the cache in one step, so that a run beside this one never reads half a file."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(json.dumps(entries))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot keep the media sizes in %s (%s); they will be read again", path, error)

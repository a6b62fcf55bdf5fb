"""Read the sizes of images and videos from their headers, and cache them on disk from run to run."""

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.media.frames import frames_info, frames_stamp, is_frame_list
from qwenvl.data.media.images import MAX_IMAGE_PIXELS, image_size
from qwenvl.data.media.size_cache import ImageSize, SizeCache, Stamp
from qwenvl.data.media.store import DEFAULT_CACHE_DIR
from qwenvl.data.media.videos import VideoInfo, video_info
from qwenvl.errors import UserError
from qwenvl.utils.parallel import in_threads

logger = logging.getLogger(__name__)

# Files of one task of a thread: a task costs about as much as reading a cached header.
_CHUNK = 256
# Files whose stamps and rows are in memory at a time; their new sizes are stored in one transaction.
_BATCH = 16384
_LARGEST_INTEGER = 2**63


class Unreadable(NamedTuple):
    """Why the header of a file could not be read; the path is not part of the reason."""

    reason: str


class BothUses(NamedTuple):
    """The two sizes of a file that is used as an image and as a video."""

    image: ImageSize | Unreadable
    video: VideoInfo | Unreadable


MediaSizes = dict[str, ImageSize | VideoInfo | Unreadable | BothUses]


def size_of(sizes: MediaSizes, path: str, use: str) -> ImageSize | VideoInfo | Unreadable:
    """Return the size of a file in one of its uses, "image" or "video"."""
    size = sizes[path]
    return getattr(size, use) if isinstance(size, BothUses) else size


def scan_media_sizes(
    images: Iterable[str],
    videos: Iterable[str],
    cache_dir: str | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> MediaSizes:
    """Return the size of every file, from the cache where the file's time and length are those of the last reading.

    Files that cannot be read, including images over `max_image_pixels`, are `Unreadable` and are tried again the next
    time.
    """
    sizes: MediaSizes = {}
    # Many media have few different sizes, and share one object for each.
    shared: dict[ImageSize, ImageSize] = {}
    num_read = 0
    folder = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser()
    read_image = partial(_read_image, max_pixels=max_image_pixels)
    with SizeCache(folder) as cache:
        for use, media, read in (("image", images, read_image), ("video", videos, _read_video)):
            paths = sorted(set(media))
            for start in range(0, len(paths), _BATCH):
                batch = paths[start : start + _BATCH]
                found, num_new = _scan_batch(use, batch, read, cache, max_image_pixels)
                num_read += num_new
                _add_sizes(sizes, batch, found, shared)
    if num_read:
        logger.info("read the size of %d media files from their headers", num_read)
    return sizes


def _scan_batch(
    use: str,
    paths: list[str],
    read: Callable[[str], Any],
    cache: SizeCache,
    max_image_pixels: int,
) -> tuple[list[Any], int]:
    """Return the size of each file, and how many were read from headers; those are added to the cache."""
    stamps = list(in_threads(_stamp, paths, chunk_size=_CHUNK))
    found = cache.find(use, paths, stamps)
    # An image that a run with a higher limit has cached is read again, to be refused with the reason.
    new = [index for index, size in enumerate(found) if size is None or _is_over(size, max_image_pixels)]
    sizes = in_threads(read, (paths[index] for index in new), chunk_size=_CHUNK)
    for index, size in zip(new, sizes, strict=True):
        found[index] = size
    entries = [
        (paths[index], stamps[index], found[index])
        for index in new
        if stamps[index] is not None and not isinstance(found[index], Unreadable)
    ]
    if entries:
        cache.add(use, entries)
    return found, len(new)


def _add_sizes(sizes: MediaSizes, paths: list[str], found: list[Any], shared: dict[ImageSize, ImageSize]) -> None:
    """Enter the sizes of one use; `shared` holds the object of each image size so far."""
    for path, size in zip(paths, found, strict=True):
        size = shared.setdefault(size, size) if isinstance(size, ImageSize) else size
        sizes[path] = BothUses(sizes[path], size) if path in sizes else size


def _stamp(path: str) -> Stamp | None:
    try:
        if is_frame_list(path):
            mtime_ns, num_bytes = frames_stamp(path)
        else:
            status = os.stat(path)
            mtime_ns, num_bytes = status.st_mtime_ns, status.st_size
    # ValueError: the path contains a NUL character.
    except (OSError, ValueError):
        return None
    # A time after the year 2262 does not fit into a database's integer.
    return mtime_ns % _LARGEST_INTEGER, num_bytes


def _is_over(size: ImageSize | VideoInfo, max_image_pixels: int) -> bool:
    return isinstance(size, ImageSize) and size.height * size.width > max_image_pixels


def _read_image(path: str, max_pixels: int) -> ImageSize | Unreadable:
    try:
        return ImageSize(*image_size(path, max_pixels))
    except UserError as error:
        return Unreadable(error.reason_for(path))


def _read_video(path: str) -> VideoInfo | Unreadable:
    try:
        return frames_info(path) if is_frame_list(path) else video_info(path)
    except UserError as error:
        return Unreadable(error.reason_for(path))

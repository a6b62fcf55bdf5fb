"""Read the sizes of images and videos from their headers, and remember them on disk from run to run."""

import gc
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.media.frames import frames_info, frames_stamp, is_frame_list
from qwenvl.data.media.images import MAX_IMAGE_PIXELS, image_size
from qwenvl.data.media.store import DEFAULT_CACHE_DIR
from qwenvl.data.media.videos import VideoInfo, video_info
from qwenvl.errors import UserError
from qwenvl.utils.files import remove_abandoned, written_whole

logger = logging.getLogger(__name__)

CACHE_FILE = "media_sizes.json"
# Reading headers waits for the disk, above all for one on the network, more than for the processor.
_THREADS = 16
_CHUNK = 256
# No side, rate or number of frames comes near it.
_LARGEST = 2**31


class ImageSize(NamedTuple):
    """Height and width in pixels of an upright picture."""

    height: int
    width: int


class Unreadable(NamedTuple):
    """Why the header of a file could not be read; the path is not part of the reason."""

    reason: str


class BothUses(NamedTuple):
    """What became of a file that is used as an image and as a video."""

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

    Files that cannot be read, images over `max_image_pixels` among them, are `Unreadable` and are tried again the next
    time.
    """
    cache_path = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser() / CACHE_FILE
    cached = _read_cache(cache_path)
    image_paths, video_paths = sorted(set(images)), sorted(set(videos))
    with ThreadPoolExecutor(_THREADS) as pool:
        stamps = dict(zip([*image_paths, *video_paths], _spread(pool, _stamp, image_paths + video_paths), strict=True))
        sizes: MediaSizes = {}
        num_read = 0
        read_image = partial(_read_image, max_pixels=max_image_pixels)
        for paths, read, kind in ((image_paths, read_image, ImageSize), (video_paths, _read_video, VideoInfo)):
            known = {path: _recall(cached.get(path), stamps[path], kind) for path in paths}
            # An image that a run with a higher limit has noted is read again, to be refused with the reason.
            new = [path for path, size in known.items() if size is None or _is_over(size, max_image_pixels)]
            for path, size in (known | dict(zip(new, _spread(pool, read, new), strict=True))).items():
                sizes[path] = BothUses(sizes[path], size) if path in sizes else size
            num_read += len(new)
    if any(isinstance(size, Unreadable | BothUses) for size in sizes.values()):
        # An error may hold on to a decord reader. Collected only in a forked DataLoader worker, the reader would wait
        # there for ever for its decoder thread, which a fork does not copy.
        gc.collect()
    if num_read:
        logger.info("read the size of %d media files from their headers", num_read)
        entries = {
            path: [*stamps[path], *size] for path, size in sizes.items() if not isinstance(size, Unreadable | BothUses)
        }
        # Read again: a run beside this one may have added to it.
        _write_cache(cache_path, cached | _read_cache(cache_path) | entries)
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


def _recall(entry: Any, stamp: tuple[int, int] | None, kind: type) -> ImageSize | VideoInfo | None:
    """Return what the cache says of a file, or None where it says nothing of the file as it is, or nothing sensible."""
    if not isinstance(entry, list) or stamp is None or tuple(entry[:2]) != stamp:
        return None
    wanted = kind.__annotations__.values()
    if len(entry) != 2 + len(wanted) or not all(map(_may_be, entry[2:], wanted)):
        return None
    # JSON has no tuples, and a size must be hashable.
    return kind(*(tuple(value) if isinstance(value, list) else value for value in entry[2:]))


def _may_be(value: Any, wanted: Any) -> bool:
    """Whether a value is a number above 0, a whole one where those are wanted, or else a list of times or None."""
    if wanted not in (int, float):
        return value is None or (isinstance(value, list) and all(type(time) in (int, float) for time in value))
    numbers = (int,) if wanted is int else (int, float)
    return type(value) in numbers and 0 < value < _LARGEST


def _is_over(size: ImageSize | VideoInfo, max_image_pixels: int) -> bool:
    return isinstance(size, ImageSize) and size.height * size.width > max_image_pixels


def _read_image(path: str, max_pixels: int) -> ImageSize | Unreadable:
    try:
        return ImageSize(*image_size(path, max_pixels))
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
    except (OSError, ValueError, RecursionError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _write_cache(path: Path, entries: dict[str, list]) -> None:
    """Replace the cache in one step, so that a run beside this one never reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(entries))
        remove_abandoned(path.parent, f"{path.name}?*")
    except OSError as error:
        logger.warning("cannot keep the media sizes in %s (%s); they will be read again", path, error)

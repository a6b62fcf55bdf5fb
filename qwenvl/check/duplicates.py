"""Find equal files, and records that repeat another one."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from qwenvl.data.annotations import BadSample, Record
from qwenvl.data.media.frames import frame_paths, is_frame_list
from qwenvl.utils.parallel import in_threads

_EDGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20

MediaIds = dict[str, Hashable]


def media_of(record: Record) -> tuple[str, ...]:
    """Return the paths of a record's images and videos."""
    return (*record.images, *record.videos)


def files_of(record: Record) -> tuple[str, ...]:
    """Return the paths of a record's files; those of a video that is given as frames are its frames."""
    return tuple(path for each in media_of(record) for path in (is_frame_list(each) and frame_paths(each)) or [each])


def media_ids(paths: Iterable[str], by_content: bool = True) -> MediaIds:
    """Return an id for each path that is equal for files with the same bytes, or with `by_content=False` by path.

    Only files that have the same size as another one are read, and most of these only at both ends. A file that cannot
    be read has an id of its own. Videos that are given as frames have equal ids if their frames have.
    """
    paths = set(paths)
    frames = {path: frame_paths(path) for path in paths if is_frame_list(path)}
    ids = _file_ids(paths.difference(frames).union(*frames.values()), by_content)
    return ids | {path: tuple(ids[frame] for frame in own) or path for path, own in frames.items()}


def _file_ids(paths: Iterable[str], by_content: bool) -> MediaIds:
    ordered = sorted(paths)
    if not by_content:
        return {path: path for path in ordered}
    links = dict(zip(ordered, in_threads(_inode, ordered), strict=True))
    # Hard links to the same file are not read.
    one_of = {inode: path for path, inode in links.items()}
    ids: dict[str, tuple] = {path: inode[-1:] for inode, path in one_of.items()}
    for look in (_edges, _digest):
        shared = Counter(ids.values())
        candidates = [path for path, known in ids.items() if shared[known] > 1]
        for path, more in zip(candidates, in_threads(look, candidates), strict=True):
            ids[path] += (more,)
    return {path: ids[one_of[inode]] for path, inode in links.items()}


def find_duplicates(records: Sequence[Record], ids: MediaIds, same: str) -> Iterator[BadSample]:
    """Yield each record that repeats an earlier one: same media, and same answers or (`same="record"`) all turns.

    Text-only records are always compared by all turns, because different questions may have the same short answer.
    """
    first: dict[Hashable, Record] = {}
    for record in records:
        media = tuple(ids[path] for path in media_of(record))
        whole = same == "record" or not media
        turns = tuple(turn for turn in record.turns if whole or turn.role == "assistant")
        duplicate = first.setdefault((media, turns), record)
        # A dataset that is listed twice yields the same objects twice, on purpose.
        if duplicate is not record:
            kept = "media" if media_of(record) == media_of(duplicate) else "content of its media"
            what = "text" if not media else f"{kept} and the same " + ("turns" if whole else "answer")
            yield BadSample.of(
                record, next(iter(media_of(record)), None), f"the same {what} as {duplicate.full_location}"
            )


def _inode(path: str) -> tuple:
    """Return a key that is equal for hard links to the same file, with the size in bytes as its last item."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return (path,)
    # Reading a pipe or a device might never end.
    if not stat.S_ISREG(status.st_mode):
        return (path,)
    return status.st_dev, status.st_ino, status.st_size


def _edges(path: str) -> bytes | str:
    """Return a digest of the first and last bytes of a file, where most files of the same size differ."""
    try:
        with open(path, "rb") as file:
            head = file.read(_EDGE_BYTES)
            file.seek(max(os.fstat(file.fileno()).st_size - _EDGE_BYTES, 0))
            return hashlib.blake2b(head + file.read(), digest_size=16).digest()
    except OSError:
        return path


def _digest(path: str) -> bytes | str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return path
    return digest.digest()

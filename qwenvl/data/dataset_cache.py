"""Cache the prepared records of a large dataset on disk, for the other processes and for the next start.

An entry is a folder named by a digest of everything that determines its content: the bytes of the annotation files, the
flags, the model's tokenizer, template and processors, and the code of this package. Media are compared by modification
time and size; a file that was changed, added or removed invalidates the entry.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from transformers import ProcessorMixin

from qwenvl.data.annotations import BadSample, BadSampleTracker, Record
from qwenvl.data.lengths import TokenCounts
from qwenvl.data.media.frames import frame_paths, is_frame_list
from qwenvl.data.media.size_cache import SizeCache
from qwenvl.data.media.sizes import scan_media_sizes
from qwenvl.data.media.store import DEFAULT_CACHE_DIR
from qwenvl.data.packing import PackTable
from qwenvl.data.record_table import RecordTable, write_table
from qwenvl.data.sample_digest import digest_samples
from qwenvl.utils.parallel import in_threads

logger = logging.getLogger(__name__)

# Smaller data are read again in seconds.
WORTH_BYTES = 8 * 2**20
_DAYS_KEPT, _DAYS_UNFINISHED = 30, 1
_UNFINISHED = ".unfinished"
_FOLDER, _META, _DIGEST = "datasets", "meta.json", "samples.sha256"
_COUNTS = ("total", "supervised", "patches")
_STAMP_CHUNK = 4096
_CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class PreparedData:
    """The usable records of a dataset with their counts, packs and messages.

    `digest` is that of `digest_samples`, if known. `messages` are (level, text) pairs for the log.
    """

    records: Sequence[Record]
    counts: TokenCounts
    packs: PackTable
    digest: str | None = None
    bad: list[BadSample] = field(default_factory=list)
    messages: list[tuple[int, str]] = field(default_factory=list)


class DatasetCache:
    """One entry: the prepared data of one dataset for one model and one set of flags."""

    def __init__(self, media_cache_dir: str | None, key: str) -> None:
        self._root = Path(media_cache_dir or DEFAULT_CACHE_DIR).expanduser() / _FOLDER
        self.folder = self._root / key

    def load(self, check: bool = True) -> PreparedData | None:
        """Return the cached data, or None if there are none or they cannot be read.

        With `check`, an entry with a damaged file or with media that have changed since is removed.
        """
        try:
            meta = json.loads((self.folder / _META).read_text())
            if check and (flaw := self._find_flaw(meta)):
                logger.info("%s, %s: the data are read again", self.folder, flaw)
                self.remove()
                return None
            os.utime(self.folder / _META)
            columns = {name: self._column(name) for name in _COUNTS}
            packs = PackTable(self._column("pack_indices"), self._column("pack_ends"))
            digest = (self.folder / _DIGEST).read_text()
            bad = [BadSample(*values) for values in meta["bad"]]
            return PreparedData(RecordTable(self.folder), TokenCounts(**columns), packs, digest, bad, meta["messages"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            logger.warning("cannot use the prepared data in %s (%s): the data are read again", self.folder, error)
            return None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Create a temporary folder next to the entry, on the same disk, to prepare data in; raises `OSError`."""
        folder = self._root / f"{self.folder.name}.{uuid.uuid4().hex}{_UNFINISHED}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def save(self, data: PreparedData, stamps: "MediaStamps", replace: bool = True) -> None:
        """Write prepared data atomically; raises `OSError`.

        Without `replace`, an entry that the first node has written to a shared folder meanwhile stays: only that node
        has logged, and so recorded, all messages.
        """
        with self.scratch() as partial:
            self._write(partial, data, stamps)
            if replace:
                self.remove()
            if not self.folder.exists():
                partial.replace(self.folder)
        self._remove_old()
        size = annotation_bytes([str(self.folder)]) / 2**20
        logger.info("cached %d prepared records (%.0f MB) in %s", len(data.records), size, self.folder)

    def remove(self) -> None:
        """Remove the entry, so that no process loads it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, folder: Path, data: PreparedData, stamps: "MediaStamps") -> None:
        write_table(folder, data.records)
        for name in _COUNTS:
            np.save(folder / f"{name}.npy", getattr(data.counts, name))
        np.save(folder / "pack_indices.npy", data.packs.indices)
        np.save(folder / "pack_ends.npy", data.packs.ends)
        (folder / _DIGEST).write_text(digest_samples(data.records, data.counts, data.packs))
        (folder / "media.txt").write_bytes(b"\0".join(stamps.paths))
        np.save(folder / "stamps.npy", stamps.stamps)
        meta = {
            "bad": [*map(astuple, data.bad)],
            "messages": data.messages,
            "digest": _digest_entry(folder),
        }
        (folder / _META).write_text(json.dumps(meta))

    def _column(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def _find_flaw(self, meta: dict[str, Any]) -> str | None:
        if meta["digest"] != _digest_entry(self.folder):
            return "one of its files is damaged"
        return None if self._media_are_unchanged() else "some media have changed since it was made"

    def _media_are_unchanged(self) -> bool:
        stamps = np.load(self.folder / "stamps.npy")
        joined = (self.folder / "media.txt").read_bytes()
        paths = joined.split(b"\0") if joined else []
        return len(paths) == len(stamps) and np.array_equal(_stat_all(paths), stamps)

    def _remove_old(self) -> None:
        """Remove entries that no run has used for a month, and leftovers of runs that were killed before yesterday."""
        for folder in self._root.iterdir():
            meta = folder / _META
            used = meta.stat().st_mtime if meta.exists() else folder.stat().st_mtime
            days = _DAYS_UNFINISHED if folder.suffix == _UNFINISHED else _DAYS_KEPT
            if time.time() - used > days * 86400:
                shutil.rmtree(folder, ignore_errors=True)


class MediaStamps:
    """Modification times and sizes of the media of records; taken before they are read."""

    def __init__(self, images: Iterable[str], videos: Iterable[str], bad: Iterable[BadSample]) -> None:
        paths = {*filter(os.path.isabs, images)}
        for video in filter(os.path.isabs, videos):
            paths.add(video)
            if is_frame_list(video):
                paths.update(frame_paths(video))
        paths |= {bad.path for bad in bad if bad.path and os.path.isabs(bad.path)}
        self.paths = [*map(os.fsencode, sorted(paths))]
        self.stamps = _stat_all(self.paths)


def _stat_all(paths: Sequence[bytes]) -> np.ndarray:
    """Return modification time (ns) and size of each file, int64 (n, 2); -1 for a missing file."""
    stamps = in_threads(_stamp, paths, chunk_size=_STAMP_CHUNK)
    return np.fromiter(chain.from_iterable(stamps), np.int64, 2 * len(paths)).reshape(-1, 2)


def _stamp(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_mtime_ns, status.st_size


def annotation_bytes(paths: Iterable[str]) -> int:
    """Return the total size of the annotation files (or of the files in these folders)."""
    return sum(os.path.getsize(file) for path in set(paths) for file in _files(path))


def _digest_entry(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.name != _META)
    return digest_of([(name, _digest_file(str(folder / name))) for name in names])


def digest_files(paths: Iterable[str]) -> str:
    """Return a digest of the names and contents of files, and of all files in folders."""
    digest = hashlib.sha256()
    for file in (file for path in paths for file in _files(path)):
        digest.update(f"{file}\0{_digest_file(file)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _digest_file(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)


def digest_of(*parts: Any) -> str:
    """Return a digest of JSON values (other values by their `repr`)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def digest_processor(processor: ProcessorMixin) -> str | None:
    """Return a digest of everything that determines a processor's output; None if that cannot be identified."""
    if not processor.tokenizer.is_fast:
        return None
    parts = [processor.tokenizer.backend_tokenizer.to_str(), processor.chat_template]
    for part in (processor.image_processor, processor.video_processor):
        parts.append([type(part).__qualname__, part.to_dict()])
    versions = [transformers.__version__, tokenizers.__version__, np.__version__]
    code = [str(path) for room in ("data", "vision") for path in sorted((_CODE / room).rglob("*.py"))]
    return digest_of(*parts, processor.tokenizer.special_tokens_map, versions, digest_files(code))


class RecordingTracker(BadSampleTracker):
    """Tracker that forwards bad samples to the tracker of the run and records them."""

    def __init__(self, tracker: BadSampleTracker) -> None:
        super().__init__(tracker.policy, tracker.max_bad_samples)
        self._tracker = tracker

    def report(self, bad: BadSample) -> None:
        """Record a bad sample, and report it to the tracker of the run."""
        self.samples.append(bad)
        self._tracker.report(bad)


@contextmanager
def collect_messages(messages: list[tuple[int, str]]) -> Iterator[None]:
    """Record the log messages about the data in `messages`, so that a later start can repeat them.

    Bad samples are recorded separately, and messages about reading and writing files are not repeated.
    """

    def keep(entry: logging.LogRecord) -> None:
        about_bad_sample = isinstance(entry.args, tuple) and any(isinstance(arg, BadSample) for arg in entry.args)
        if not about_bad_sample and entry.name not in (__name__, scan_media_sizes.__module__, SizeCache.__module__):
            messages.append((entry.levelno, entry.getMessage()))

    handler = logging.Handler()
    handler.emit = keep  # type: ignore[method-assign]
    package_logger = logging.getLogger("qwenvl.data")
    package_logger.addHandler(handler)
    try:
        yield
    finally:
        package_logger.removeHandler(handler)

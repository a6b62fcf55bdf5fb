"""Store the sizes of media in a small SQLite database that several runs may fill at once."""

import json
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from qwenvl.data.boxes import ImageSize
from qwenvl.data.media.videos import VideoInfo

logger = logging.getLogger(__name__)

CACHE_FILE = "media_sizes.sqlite"
# To be raised when the tables change, or what is read of a file.
_LAYOUT = 2
# In WAL mode processes share memory, which those of several hosts cannot (https://www.sqlite.org/wal.html).
_LOCAL_FILE_SYSTEMS = frozenset(
    ("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
)
_BUSY_SECONDS = 60.0
# SQLite before 3.32 takes at most 999 parameters.
_PATHS_PER_QUERY = 900
_TABLES = """
CREATE TABLE IF NOT EXISTS image (
    path BLOB PRIMARY KEY, mtime_ns INTEGER, bytes INTEGER,
    height INTEGER CHECK (height > 0), width INTEGER CHECK (width > 0)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS video (
    path BLOB PRIMARY KEY, mtime_ns INTEGER, bytes INTEGER,
    total_frames INTEGER CHECK (total_frames > 0), fps REAL CHECK (fps > 0),
    height INTEGER CHECK (height > 0), width INTEGER CHECK (width > 0), times TEXT
) WITHOUT ROWID;
"""

Stamp = tuple[int, int]


_CLASSES = {"image": ImageSize, "video": VideoInfo}


class SizeCache:
    """A database of sizes by path, each with the time and length (`Stamp`) that its file had; a context manager.

    It never raises: errors are logged in one line, and the sizes are read from the files again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CACHE_FILE
        self._connection: sqlite3.Connection | None = None
        self._is_writable = False

    def __enter__(self) -> "SizeCache":
        try:
            self._open()
        except sqlite3.Error as error:
            if not self._rebuild(error):
                self._fall_back(error)
        except OSError as error:
            self._fall_back(error)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._close()

    def find(self, use: str, paths: Sequence[str], stamps: Sequence[Stamp | None]) -> list[Any]:
        """Return the size of each file in its `use` ("image" or "video"), or None where it is unknown or changed."""
        if self._connection is None:
            return [None] * len(paths)
        rows: dict[bytes, tuple] = {}
        keys = list(map(_key, paths))
        try:
            for start in range(0, len(keys), _PATHS_PER_QUERY):
                part = keys[start : start + _PATHS_PER_QUERY]
                marks = ",".join("?" * len(part))
                found = self._connection.execute(f"SELECT * FROM {use} WHERE path IN ({marks})", part)
                rows.update((row[0], row[1:]) for row in found)
        except sqlite3.Error as error:
            if not self._rebuild(error):
                self._give_up(error)
            return [None] * len(paths)
        return [_size(use, rows.get(key), stamp) for key, stamp in zip(keys, stamps, strict=True)]

    def add(self, use: str, entries: Iterable[tuple[str, Stamp, ImageSize | VideoInfo]]) -> None:
        """Store the sizes of files in one transaction; those of the same paths are replaced."""
        if self._connection is None or not self._is_writable:
            return
        rows = [(_key(path), *stamp, *_columns(size)) for path, stamp, size in entries]
        try:
            self._write(use, rows)
        except sqlite3.Error as error:
            if not self._rebuild(error):
                self._fall_back(error)
                return
            with suppress(sqlite3.Error):
                self._write(use, rows)

    def _write(self, use: str, rows: list[tuple]) -> None:
        marks = ",".join("?" * len(rows[0])) if rows else ""
        with self._connection:
            self._connection.execute("BEGIN")
            self._connection.executemany(f"INSERT OR REPLACE INTO {use} VALUES ({marks})", rows)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        self._connection = connection
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout not in (0, _LAYOUT):
            raise sqlite3.DatabaseError(f"layout {layout}, expected {_LAYOUT}")
        _set_journal(connection, self._path.parent)
        if layout == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_LAYOUT}; COMMIT;")
        else:
            for use in _CLASSES:
                connection.execute(f"SELECT 1 FROM {use} LIMIT 1").fetchone()
        self._is_writable = True

    def _rebuild(self, error: sqlite3.Error) -> bool:
        """Replace a broken database by an empty one; return whether there is one now."""
        # Its subclasses are about locks, permissions and disks, where the file itself may be whole.
        if type(error) is not sqlite3.DatabaseError:
            return False
        try:
            opened = self._path.stat().st_ino
            logger.warning("the media sizes in %s are broken (%s); starting a new file", self._path, error)
            self._close()
            if self._path.stat().st_ino == opened:
                for suffix in ("-wal", "-shm", "-journal", ""):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._open()
        except (OSError, sqlite3.Error):
            return False
        return True

    def _fall_back(self, error: Exception) -> None:
        """Open the database read-only, where that is possible."""
        self._close()
        # A read-only folder cannot hold the file of shared memory that WAL mode needs, and its database cannot change.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            with suppress(sqlite3.Error):
                self._connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?{options}", uri=True)
                self._connection.execute("SELECT 1 FROM image LIMIT 1").fetchone()
                break
            self._close()
        self._warn(error)

    def _give_up(self, error: Exception) -> None:
        self._close()
        self._warn(error)

    def _warn(self, error: Exception) -> None:
        logger.warning("cannot keep the media sizes in %s (%s); new ones will be read again", self._path, error)

    def _close(self) -> None:
        self._is_writable = False
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _set_journal(connection: sqlite3.Connection, folder: Path) -> None:
    """Use write-ahead logging on a local disk, and a rollback journal on others."""
    connection.execute("PRAGMA synchronous = NORMAL")
    mode = "WAL" if is_local(folder) else "DELETE"
    # Where this mode does not work, or another run is just opening the file, the mode stays as it is.
    with suppress(sqlite3.OperationalError):
        connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()


def is_local(folder: Path) -> bool:
    """Return whether a folder is on a file system that only this host is known to use."""
    resolved = folder.resolve()
    # Of several mounts of a folder the last one is visible.
    mounts = {Path(partition.mountpoint): partition.fstype for partition in psutil.disk_partitions(all=True)}
    kind = next((mounts[path] for path in (resolved, *resolved.parents) if path in mounts), "")
    return kind.lower() in _LOCAL_FILE_SYSTEMS


def _key(path: str) -> bytes:
    # File names need not be valid UTF-8.
    return path.encode("utf-8", "surrogatepass")


def _columns(size: ImageSize | VideoInfo) -> tuple:
    if isinstance(size, ImageSize):
        return size
    return (*size[:-1], None if size.times is None else json.dumps(size.times))


def _size(use: str, row: tuple | None, stamp: Stamp | None) -> ImageSize | VideoInfo | None:
    if row is None or stamp is None or row[:2] != stamp:
        return None
    if use == "image":
        return ImageSize(*row[2:])
    times = row[-1]
    return VideoInfo(*row[2:-1], None if times is None else tuple(json.loads(times)))

"""Table of records on disk: written once, read one at a time by every process and DataLoader worker.

A million records as Python objects take gigabytes in each process, and a forked worker copies the pages it reads,
because reading an object changes its reference count. Here a process only has an open file and the offsets of the
records in it.

The files of a table of n records: `records.jsonl`, one record per line; `classes.json`, the dataclasses in it; and
int64 (n,) each: `ends.npy`, the ends of the lines, `images.npy` and `videos.npy`, the numbers of media of the records.
"""

import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import numpy as np

from qwenvl.data.annotations import Record

_LINES, _ENDS, _CLASSES = "records.jsonl", "ends.npy", "classes.json"
_MEDIA = ("images", "videos")
# A table may contain dataclasses of this package only: names in a file must not select any other code.
_PACKAGE = "qwenvl.data."
_LINES_AT_ONCE = 4096


class RecordTable(Sequence[Record]):
    """The records that a `RecordWriter` wrote to a folder, equal to the originals."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open()

    def _open(self) -> None:
        self._file = open(self.folder / _LINES, "rb", buffering=0)  # noqa: SIM115
        self.ends = np.load(self.folder / _ENDS, mmap_mode="r")
        self.decode = _Decoder(json.loads((self.folder / _CLASSES).read_text())).record
        self.num_images, self.num_videos = (np.load(self.folder / f"{kind}.npy", mmap_mode="r") for kind in _MEDIA)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [*map(self.decode, self.lines(np.arange(*index.indices(len(self)))))]
        index = range(len(self))[index]
        return self.decode(next(self._read_lines(index, index + 1)))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _LINES_AT_ONCE):
            yield from self[start : start + _LINES_AT_ONCE]

    def lines(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yield the lines of the records at these indices, (n,), without line ends; adjacent lines are read at once."""
        borders = np.flatnonzero(np.diff(indices) != 1) + 1
        for run in np.split(indices, borders) if len(indices) else ():
            yield from self._read_lines(int(run[0]), int(run[-1]) + 1)

    def _read_lines(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the lines of adjacent records; `pread` does not move the file position that processes share."""
        begin, end = int(self.ends[start - 1]) if start else 0, int(self.ends[stop - 1])
        yield from os.pread(self._file.fileno(), end - begin, begin).splitlines()

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.folder = folder
        self._open()


class RecordSelection(Sequence[Record]):
    """The records of a table at some indices, (n,), in their order; indices may repeat."""

    def __init__(self, table: RecordTable, indices: np.ndarray) -> None:
        self.table, self.indices = table, indices

    @property
    def num_images(self) -> np.ndarray:
        """How many images each record has, (n,)."""
        return self.table.num_images[self.indices]

    @property
    def num_videos(self) -> np.ndarray:
        """How many videos each record has, (n,)."""
        return self.table.num_videos[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [*map(self.table.decode, self.table.lines(self.indices[index]))]
        return self.table[int(self.indices[index])]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _LINES_AT_ONCE):
            yield from self[start : start + _LINES_AT_ONCE]


class RecordWriter:
    """Context manager that writes a table record by record."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._encode = _Encoder()
        self._ends = array("q")
        self._counts = {kind: array("q") for kind in _MEDIA}
        self._end = 0
        self._pending: list[bytes] = []

    def __enter__(self) -> "RecordWriter":
        self._stream = open(self._folder / _LINES, "wb")  # noqa: SIM115
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._stream:
            if kind is None:
                self._stream.writelines(self._pending)
                columns = (np.array(column, np.int64) for column in (self._ends, *self._counts.values()))
                _write_columns(self._folder, *columns)
                (self._folder / _CLASSES).write_text(json.dumps(self._encode.classes))

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, record: Record) -> None:
        """Append a record."""
        line = self._encode.line(record)
        self._pending.append(line)
        self._end += len(line)
        self._ends.append(self._end)
        for kind, counts in self._counts.items():
            counts.append(len(getattr(record, kind)))
        if len(self._pending) == _LINES_AT_ONCE:
            self._stream.writelines(self._pending)
            self._pending.clear()


def write_table(folder: Path, records: Iterable[Record]) -> None:
    """Write records to a folder that `RecordTable` reads."""
    if isinstance(records, RecordSelection):
        _copy(records.table, records.indices, folder)
        return
    with RecordWriter(folder) as writer:
        for record in records:
            writer.add(record)


def _copy(table: RecordTable, indices: np.ndarray, folder: Path) -> None:
    """Write the records of a table at these indices, (n,), without decoding them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LINES, "wb") as stream:
        for start in range(0, len(indices), _LINES_AT_ONCE):
            stream.writelines(line + b"\n" for line in table.lines(indices[start : start + _LINES_AT_ONCE]))
    ends = np.diff(table.ends, prepend=0)[indices].cumsum()
    _write_columns(folder, ends, table.num_images[indices], table.num_videos[indices])
    shutil.copy(table.folder / _CLASSES, folder / _CLASSES)


def _write_columns(folder: Path, ends: np.ndarray, num_images: np.ndarray, num_videos: np.ndarray) -> None:
    for name, column in (
        (_ENDS, ends),
        *zip((f"{kind}.npy" for kind in _MEDIA), (num_images, num_videos), strict=True),
    ):
        np.save(folder / name, column)


def select(records: Sequence[Record], indices: np.ndarray) -> Sequence[Record]:
    """Return the records at these indices, (n,); records of a table stay on disk."""
    if isinstance(records, RecordTable):
        return RecordSelection(records, indices)
    if isinstance(records, RecordSelection):
        return RecordSelection(records.table, records.indices[indices])
    return [records[index] for index in indices.tolist()]


def count_media(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images and how many videos each record has, int64 (n,) each."""
    if isinstance(records, RecordTable | RecordSelection):
        return records.num_images, records.num_videos
    counts = [(len(record.images), len(record.videos)) for record in records]
    images, videos = np.array(counts, dtype=np.int64).reshape(-1, 2).T
    return images, videos


class _Encoder:
    """Encodes dataclasses as {"number of the class": [values of its fields]}."""

    def __init__(self) -> None:
        self._numbers: dict[type, tuple[str, Callable[[Any], Any]]] = {}
        self._dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=self._values).encode

    @property
    def classes(self) -> list[str]:
        return [f"{kind.__module__}:{kind.__qualname__}" for kind in self._numbers]

    def line(self, record: Record) -> bytes:
        # JSON escapes line breaks, so that one line is one record. A text may contain half of a surrogate pair.
        return self._dumps(record).encode("utf-8", "surrogatepass") + b"\n"

    def _values(self, value: Any) -> dict[str, list]:
        kind = type(value)
        if kind not in self._numbers:
            if not is_dataclass(value) or not kind.__module__.startswith(_PACKAGE):
                raise TypeError(f"a record table takes JSON's types and dataclasses of {_PACKAGE}*, got {value!r}")
            names = [field.name for field in fields(value)]
            get = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, names[0])]
            self._numbers[kind] = (str(len(self._numbers)), get)
        number, get = self._numbers[kind]
        return {number: get(value)}


class _Decoder:
    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = {str(number): _find_class(name) for number, name in enumerate(classes)}
        self._loads = json.JSONDecoder(object_hook=self._object).decode

    def record(self, line: bytes) -> Record:
        return self._loads(line.decode("utf-8", "surrogatepass"))

    def _object(self, value: dict[str, list]) -> Any:
        ((number, values),) = value.items()
        # Most fields are not sequences: a call for each of them would double the time.
        return self._classes[number](*[_as_tuple(value) if type(value) is list else value for value in values])


def _find_class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if not module.startswith(_PACKAGE):
        raise ValueError(f"a record table names the class {name!r}, expected one of {_PACKAGE}*")
    kind = attrgetter(qualname)(import_module(module))
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"a record table names {name!r}, which is not a dataclass")
    return kind


def _as_tuple(values: list) -> tuple:
    """Return a decoded list as a tuple, as sequences are in records."""
    return tuple([_as_tuple(value) if type(value) is list else value for value in values])

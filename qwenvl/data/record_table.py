"""Records in files instead of memory: written once, read one at a time by every process and DataLoader worker.

A million records as Python objects take gigabytes in each process, and a forked worker copies what it looks at, because
looking counts references. Here a process holds an open file and the place of each record in it.

The files of a table of n records: `records.jsonl`, a record a line; `classes.json`, the dataclasses it is made of; and
int64 (n,) each: `ends.npy`, where the lines end, `images.npy` and `videos.npy`, how many media the records have.
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
# The dataclasses that a table may hold are those of this package: names in a file choose no other code.
_PACKAGE = "qwenvl.data."
_LINES_AT_ONCE = 4096


class RecordTable(Sequence[Record]):
    """The records that a `RecordWriter` put into a folder; equal to them, whatever dataclasses their fields hold."""

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
        place = range(len(self))[index]
        return self.decode(next(self._neighbors(place, place + 1)))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _LINES_AT_ONCE):
            yield from self[start : start + _LINES_AT_ONCE]

    def lines(self, places: np.ndarray) -> Iterator[bytes]:
        """Yield the lines of the records at these places, (n,), without their ends; neighbors are read at once."""
        borders = np.flatnonzero(np.diff(places) != 1) + 1
        for run in np.split(places, borders) if len(places) else ():
            yield from self._neighbors(int(run[0]), int(run[-1]) + 1)

    def _neighbors(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the lines of neighboring records; `pread` moves no position that processes share."""
        begin, end = int(self.ends[start - 1]) if start else 0, int(self.ends[stop - 1])
        yield from os.pread(self._file.fileno(), end - begin, begin).splitlines()

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.folder = folder
        self._open()


class RecordSelection(Sequence[Record]):
    """The records of a table at some places, (n,), in their order; one may be there several times."""

    def __init__(self, table: RecordTable, places: np.ndarray) -> None:
        self.table, self.places = table, places

    @property
    def num_images(self) -> np.ndarray:
        """How many images each record has, (n,)."""
        return self.table.num_images[self.places]

    @property
    def num_videos(self) -> np.ndarray:
        """How many videos each record has, (n,)."""
        return self.table.num_videos[self.places]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [*map(self.table.decode, self.table.lines(self.places[index]))]
        return self.table[int(self.places[index])]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _LINES_AT_ONCE):
            yield from self[start : start + _LINES_AT_ONCE]


class RecordWriter:
    """Writes the table of the records that it is given, one after another; to be closed with `with`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._encode = _Encoder()
        self._ends = array("q")
        self._counts = {kind: array("q") for kind in _MEDIA}
        self._end = 0
        self._waiting: list[bytes] = []

    def __enter__(self) -> "RecordWriter":
        self._stream = open(self._folder / _LINES, "wb")  # noqa: SIM115
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._stream:
            if kind is None:
                self._stream.writelines(self._waiting)
                columns = (np.array(column, np.int64) for column in (self._ends, *self._counts.values()))
                _write_columns(self._folder, *columns)
                (self._folder / _CLASSES).write_text(json.dumps(self._encode.classes))

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, record: Record) -> None:
        """Write a record behind the others."""
        line = self._encode.line(record)
        self._waiting.append(line)
        self._end += len(line)
        self._ends.append(self._end)
        for kind, counts in self._counts.items():
            counts.append(len(getattr(record, kind)))
        if len(self._waiting) == _LINES_AT_ONCE:
            self._stream.writelines(self._waiting)
            self._waiting.clear()


def write_table(folder: Path, records: Iterable[Record]) -> None:
    """Write records into a folder, which `RecordTable` then reads."""
    if isinstance(records, RecordSelection):
        _copy(records.table, records.places, folder)
        return
    with RecordWriter(folder) as writer:
        for record in records:
            writer.add(record)


def _copy(table: RecordTable, places: np.ndarray, folder: Path) -> None:
    """Write the records of a table at these places, (n,), without reading what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LINES, "wb") as stream:
        for start in range(0, len(places), _LINES_AT_ONCE):
            stream.writelines(line + b"\n" for line in table.lines(places[start : start + _LINES_AT_ONCE]))
    ends = np.diff(table.ends, prepend=0)[places].cumsum()
    _write_columns(folder, ends, table.num_images[places], table.num_videos[places])
    shutil.copy(table.folder / _CLASSES, folder / _CLASSES)


def _write_columns(folder: Path, ends: np.ndarray, num_images: np.ndarray, num_videos: np.ndarray) -> None:
    for name, column in (
        (_ENDS, ends),
        *zip((f"{kind}.npy" for kind in _MEDIA), (num_images, num_videos), strict=True),
    ):
        np.save(folder / name, column)


def select(records: Sequence[Record], places: np.ndarray) -> Sequence[Record]:
    """Return the records at these places, (n,); those of a table stay on disk."""
    if isinstance(records, RecordTable):
        return RecordSelection(records, places)
    if isinstance(records, RecordSelection):
        return RecordSelection(records.table, records.places[places])
    return [records[place] for place in places.tolist()]


def count_media(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images and how many videos each record has, int64 (n,) each."""
    if isinstance(records, RecordTable | RecordSelection):
        return records.num_images, records.num_videos
    counts = [(len(record.images), len(record.videos)) for record in records]
    images, videos = np.array(counts, dtype=np.int64).reshape(-1, 2).T
    return images, videos


class _Encoder:
    """Writes dataclasses as {"number of the class": [values of its fields]}."""

    def __init__(self) -> None:
        self._numbers: dict[type, tuple[str, Callable[[Any], Any]]] = {}
        self._dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=self._values).encode

    @property
    def classes(self) -> list[str]:
        return [f"{kind.__module__}:{kind.__qualname__}" for kind in self._numbers]

    def line(self, record: Record) -> bytes:
        # JSON escapes line breaks, so that a line is a record. A record's own text may hold half of a surrogate pair.
        return self._dumps(record).encode("utf-8", "surrogatepass") + b"\n"

    def _values(self, value: Any) -> dict[str, list]:
        kind = type(value)
        if kind not in self._numbers:
            if not is_dataclass(value) or not kind.__module__.startswith(_PACKAGE):
                raise TypeError(f"a record table holds JSON's types and dataclasses of {_PACKAGE}*, got {value!r}")
            names = [field.name for field in fields(value)]
            get = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, names[0])]
            self._numbers[kind] = (str(len(self._numbers)), get)
        number, get = self._numbers[kind]
        return {number: get(value)}


class _Decoder:
    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = {str(number): _class(name) for number, name in enumerate(classes)}
        self._loads = json.JSONDecoder(object_hook=self._object).decode

    def record(self, line: bytes) -> Record:
        return self._loads(line.decode("utf-8", "surrogatepass"))

    def _object(self, value: dict[str, list]) -> Any:
        ((number, values),) = value.items()
        # Most fields are no sequences: a call for each of them would take as long as all else.
        return self._classes[number](*[_as_tuple(value) if type(value) is list else value for value in values])


def _class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if not module.startswith(_PACKAGE):
        raise ValueError(f"a record table names the class {name!r}, expected one of {_PACKAGE}*")
    kind = attrgetter(qualname)(import_module(module))
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"a record table names {name!r}, which is no dataclass")
    return kind


def _as_tuple(values: list) -> tuple:
    """Return a list of a line as records have it: their sequences are tuples."""
    return tuple([_as_tuple(value) if type(value) is list else value for value in values])

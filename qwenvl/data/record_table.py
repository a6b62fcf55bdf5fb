"""Records in files instead of memory: written once, read one at a time by every process and DataLoader worker.

A million records as Python objects take gigabytes in each process, and a forked worker copies what it looks at, because
looking counts references. Here a process holds an open file and the place of each record in it.

The files of a table of n records: `records.jsonl`, a record a line; `classes.json`, the dataclasses it is made of; and
int64 (n,) each: `ends.npy`, where the lines end, `images.npy` and `videos.npy`, how many media the records have.
"""

import json
import os
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
_LINES_A_WRITE = 4096


class RecordTable(Sequence[Record]):
    """The records that `write_table` has put into a folder; equal to them, whatever dataclasses their fields hold."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._open()

    def _open(self) -> None:
        self._file = open(self._folder / _LINES, "rb", buffering=0)  # noqa: SIM115
        self._ends = np.load(self._folder / _ENDS, mmap_mode="r")
        self._decode = _Decoder(json.loads((self._folder / _CLASSES).read_text())).record
        self.num_images, self.num_videos = (np.load(self._folder / f"{kind}.npy", mmap_mode="r") for kind in _MEDIA)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return [*self._lines(start, stop)] if step == 1 else [self[place] for place in range(start, stop, step)]
        place = range(len(self))[index]
        return next(self._lines(place, place + 1))

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _LINES_A_WRITE):
            yield from self._lines(start, min(start + _LINES_A_WRITE, len(self)))

    def _lines(self, start: int, stop: int) -> Iterator[Record]:
        """Yield the records of neighboring lines, read at once; `pread` moves no position that processes share."""
        if start >= stop:
            return
        begin, end = int(self._ends[start - 1]) if start else 0, int(self._ends[stop - 1])
        for line in os.pread(self._file.fileno(), end - begin, begin).splitlines():
            yield self._decode(line)

    def __getstate__(self) -> Path:
        return self._folder

    def __setstate__(self, folder: Path) -> None:
        self._folder = folder
        self._open()


def write_table(folder: Path, records: Iterable[Record]) -> None:
    """Write the records into an existing folder, which `RecordTable` then reads."""
    encode = _Encoder()
    ends, counts = array("q"), {kind: array("q") for kind in _MEDIA}
    end, lines = 0, []
    with open(folder / _LINES, "wb") as stream:
        for record in records:
            lines.append(encode.line(record))
            end += len(lines[-1])
            ends.append(end)
            counts["images"].append(len(record.images))
            counts["videos"].append(len(record.videos))
            if len(lines) == _LINES_A_WRITE:
                stream.writelines(lines)
                lines.clear()
        stream.writelines(lines)
    for name, column in {_ENDS: ends, **{f"{kind}.npy": counts[kind] for kind in _MEDIA}}.items():
        np.save(folder / name, np.frombuffer(column, np.int64) if len(column) else np.empty(0, np.int64))
    (folder / _CLASSES).write_text(json.dumps(encode.classes))


def count_media(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many images and how many videos each record has, int64 (n,) each."""
    if isinstance(records, RecordTable):
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
        return self._classes[number](*map(_with_tuples, values))


def _class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if not module.startswith(_PACKAGE):
        raise ValueError(f"a record table names the class {name!r}, expected one of {_PACKAGE}*")
    kind = attrgetter(qualname)(import_module(module))
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"a record table names {name!r}, which is no dataclass")
    return kind


def _with_tuples(value: Any) -> Any:
    """Return a field's value as records have it: their sequences are tuples."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

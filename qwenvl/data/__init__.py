"""Registry of datasets (`data_dict`), the parser of `--dataset_use` (`data_list`), and the loader of both.

To add your own, add an entry to `data_dict`: the annotation file, and the folder that its media paths are relative to.
A path may contain `${NAME}` or `${NAME:-default}` from the environment; a relative path is resolved against the current
folder and then against the repository. A file can also be given by its path, without an entry: see
`docs/data_formats.md`.
"""

import difflib
import os
import random
import re
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qwenvl.data.annotations import Annotations, BadSampleTracker, Record, read_records
from qwenvl.data.record_table import RecordTable, RecordWriter, select
from qwenvl.data.rows import JSON_SUFFIXES
from qwenvl.data.table_rows import HUB_PREFIX, PARQUET
from qwenvl.errors import UserError

_REPOSITORY = Path(__file__).resolve().parents[2]
_MIMIC = "${MIMIC_DIR:-data/mimic}"

data_dict: dict[str, dict[str, str]] = {
    "mimic_train": {"annotation_path": f"{_MIMIC}/mimic_train.json", "data_path": _MIMIC},
    "mimic_valid": {"annotation_path": f"{_MIMIC}/mimic_valid.json", "data_path": _MIMIC},
    "mimic_test": {"annotation_path": f"{_MIMIC}/mimic_test.json", "data_path": _MIMIC},
}


class DatasetSpec(NamedTuple):
    """One entry of `--dataset_use`: the paths of its files and the share to use, in percent (0 < percent <= 100)."""

    name: str
    annotation_path: str
    data_path: str
    percent: float


def data_list(dataset_use: str | Sequence[str]) -> list[DatasetSpec]:
    """Resolve "a%50,b" (or a list of such entries) to the datasets it names; the same one may be named twice.

    Raises `UserError` for an unknown name (listing the known ones), a percentage outside (0, 100], or nothing named.
    """
    entries = dataset_use.split(",") if isinstance(dataset_use, str) else list(dataset_use)
    specs = [_parse_entry(entry.strip()) for entry in entries if entry.strip()]
    if not specs:
        raise UserError(f"no dataset named in {dataset_use!r}; give --dataset_use {_known_names()}, or a file path")
    return specs


class _File(NamedTuple):
    """Content of an annotation file: the indices of its records among all, and its packs of indices (or None)."""

    indices: range
    packs: list[list[int]] | None
    notes: tuple[str, ...]

    @property
    def units(self) -> Sequence[Sequence[int]]:
        """Units of sampling: the packs, or each record by itself."""
        return [[index] for index in self.indices] if self.packs is None else self.packs


def load_datasets(
    dataset_use: str,
    seed: int,
    tracker: BadSampleTracker,
    media_cache_dir: str | None = None,
    table_folder: Path | None = None,
) -> Annotations:
    """Read all datasets named in `dataset_use` one after another, each sampled down to its percentage.

    The sample of round(n * percent / 100) records (or whole packs) depends on `seed` and the file alone, so every rank
    draws the same. If any file is packed, each record of the others becomes a pack of its own. Media embedded in
    records are written to `media_cache_dir`. The records are kept in memory, or on disk in `table_folder`.
    """
    specs = data_list(dataset_use)
    if table_folder is None:
        records: list[Record] = []
        files = _read_files(specs, tracker, media_cache_dir, records, records.append)
        return _join_files(specs, files, records, seed)
    with RecordWriter(table_folder) as writer:
        files = _read_files(specs, tracker, media_cache_dir, writer, writer.add)
    return _join_files(specs, files, RecordTable(table_folder), seed)


def _read_files(
    specs: Sequence[DatasetSpec],
    tracker: BadSampleTracker,
    media_cache_dir: str | None,
    written: Sized,
    add_record: Callable[[Record], None],
) -> dict[tuple[str, str], _File]:
    """Append the records of each file to those already `written`, and return their indices by file."""
    read: dict[tuple[str, str], _File] = {}
    for spec in specs:
        files = (spec.annotation_path, spec.data_path)
        if files not in read:
            start = len(written)
            packs, notes = read_records(*files, tracker, media_cache_dir, add_record)
            if packs is not None:
                packs = [[start + index for index in pack] for pack in packs]
            read[files] = _File(range(start, len(written)), packs, notes)
    return read


def _join_files(
    specs: Sequence[DatasetSpec], read: dict[tuple[str, str], _File], records: Sequence[Record], seed: int
) -> Annotations:
    files = [read[spec.annotation_path, spec.data_path] for spec in specs]
    notes = tuple(note for file in read.values() for note in file.notes)
    if all(file.packs is None for file in files):
        parts = [_sample(spec, file.indices, seed) for spec, file in zip(specs, files, strict=True)]
        return Annotations(select(records, np.concatenate([np.array(part, np.int64) for part in parts])), None, notes)
    drawn = [pack for spec, file in zip(specs, files, strict=True) for pack in _sample(spec, file.units, seed)]
    packs, indices = [], []
    for pack in drawn:
        packs.append([*range(len(indices), len(indices) + len(pack))])
        indices += pack
    return Annotations(select(records, np.array(indices)), packs, notes)


def _sample(spec: DatasetSpec, units: Sequence, seed: int) -> Sequence:
    """Return the share of the units that a dataset entry asks for, in their order."""
    if spec.percent == 100:
        return units
    size = round(len(units) * spec.percent / 100)
    if size == 0:
        raise UserError(
            f"{spec.name}%{spec.percent:g} keeps none of its {len(units)} samples; give a larger percentage"
        )
    return [units[index] for index in sorted(random.Random(seed).sample(range(len(units)), size))]


def _parse_entry(entry: str) -> DatasetSpec:
    name, percent = entry, 100.0
    if entry not in data_dict and not os.path.exists(_resolve_path(entry)):
        name, mark, share = entry.rpartition("%")
        name, percent = (name, _parse_percent(entry, share)) if mark else (entry, 100.0)
    if name in data_dict:
        files = data_dict[name]
        return DatasetSpec(name, _resolve_path(files["annotation_path"]), _resolve_path(files["data_path"]), percent)
    if name.startswith(HUB_PREFIX):
        return DatasetSpec(name, name, "", percent)
    path = _resolve_path(name)
    if name.endswith((*JSON_SUFFIXES, PARQUET)) or os.path.isdir(path):
        return DatasetSpec(name, path, path if os.path.isdir(path) else os.path.dirname(path), percent)
    near = difflib.get_close_matches(name, data_dict, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown dataset {name!r}; {hint}known: {_known_names()}. Add it to data_dict in qwenvl/data/__init__.py, "
        f"or give the path of a {', '.join(JSON_SUFFIXES)} or {PARQUET} file or of a folder, or {HUB_PREFIX}org/name "
        "from the Hugging Face hub"
    )


def _parse_percent(entry: str, share: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", share) or not 0 < float(share) <= 100:
        raise UserError(f"{entry!r}: the percentage {share!r} is not above 0 and at most 100; write it as in name%50")
    return float(share)


def _known_names() -> str:
    return ", ".join(sorted(data_dict))


def _resolve_path(path: str) -> str:
    """Expand environment variables, and resolve a relative path against the current folder or else the repository."""
    path = os.path.expanduser(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _expand_variable, path))
    if not path or os.path.exists(path) or not (_REPOSITORY / path).exists():
        return path
    return str(_REPOSITORY / path)


def _expand_variable(variable: re.Match[str]) -> str:
    name, default = variable.groups()
    value = os.environ.get(name) or default
    if value is None:
        raise UserError(
            f"the path of the dataset needs the environment variable {name}, which is not set: export {name}=..."
        )
    return value

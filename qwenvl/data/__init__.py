"""Owns the data sets that a run can name: `data_dict`, `data_list("a%50,b")` and their loading.

To add your own, add an entry to `data_dict`: the annotation file, and the folder that its media paths are relative to.
A path may hold `${NAME}` or `${NAME:-default}` from the environment; a relative one is looked for in the current folder
and then in the repository's. A file can also be named by its path, without an entry: see `docs/data_formats.md`.
"""

import difflib
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qwenvl.data.annotations import Annotations, BadSampleLedger, Record, read_annotations
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
    """One entry of `--dataset_use`: where its files are and the share of it to use, in percent (0 < percent <= 100)."""

    name: str
    annotation_path: str
    data_path: str
    percent: float


def data_list(dataset_use: str | Sequence[str]) -> list[DatasetSpec]:
    """Resolve "a%50,b" (or a list of such entries) to the data sets it names; the same one may be named twice.

    Raises `UserError` for an unknown name (listing the known ones), a percentage outside (0, 100], or nothing named.
    """
    entries = dataset_use.split(",") if isinstance(dataset_use, str) else list(dataset_use)
    specs = [_spec(entry.strip()) for entry in entries if entry.strip()]
    if not specs:
        raise UserError(f"no data set named in {dataset_use!r}; give --dataset_use {_known()}, or a file's path")
    return specs


def load_datasets(
    dataset_use: str, seed: int, ledger: BadSampleLedger, media_cache_dir: str | None = None
) -> Annotations:
    """Read all data sets named in `dataset_use` one after another, each sampled down to its percentage.

    The sample of round(n * percent / 100) records (or whole packs) depends on `seed` and the file alone, so every rank
    draws the same. If any file is packed, each record of the others becomes a pack of its own. Media that records hold
    themselves are written to `media_cache_dir`.
    """
    read: dict[tuple[str, str], Annotations] = {}
    parts = []
    for spec in data_list(dataset_use):
        files = (spec.annotation_path, spec.data_path)
        if files not in read:
            read[files] = read_annotations(*files, ledger, media_cache_dir)
        parts.append(_sample(spec, read[files], seed))
    packed = any(part.packs is not None for part in parts)
    records: list[Record] = []
    packs: list[list[int]] = []
    for part in parts:
        packs += [[len(records) + index for index in pack] for pack in _units(part)]
        records += part.records
    notes = tuple(note for annotations in read.values() for note in annotations.notes)
    return Annotations(records, packs if packed else None, notes)


def _units(annotations: Annotations) -> list[list[int]]:
    """Return what is drawn as a whole: the packs, or each record by itself."""
    return [[index] for index in range(len(annotations.records))] if annotations.packs is None else annotations.packs


def _sample(spec: DatasetSpec, annotations: Annotations, seed: int) -> Annotations:
    if spec.percent == 100:
        return annotations
    units = _units(annotations)
    size = round(len(units) * spec.percent / 100)
    if size == 0:
        raise UserError(
            f"{spec.name}%{spec.percent:g} keeps none of its {len(units)} samples; give a larger percentage"
        )
    kept = [units[index] for index in sorted(random.Random(seed).sample(range(len(units)), size))]
    records = [annotations.records[index] for unit in kept for index in unit]
    if annotations.packs is None:
        return Annotations(records)
    ends = [0]
    for unit in kept:
        ends.append(ends[-1] + len(unit))
    return Annotations(records, [list(range(start, end)) for start, end in zip(ends, ends[1:], strict=False)])


def _spec(entry: str) -> DatasetSpec:
    name, percent = entry, 100.0
    if entry not in data_dict and not os.path.exists(_located(entry)):
        name, mark, share = entry.rpartition("%")
        name, percent = (name, _percent(entry, share)) if mark else (entry, 100.0)
    if name in data_dict:
        files = data_dict[name]
        return DatasetSpec(name, _located(files["annotation_path"]), _located(files["data_path"]), percent)
    if name.startswith(HUB_PREFIX):
        return DatasetSpec(name, name, "", percent)
    path = _located(name)
    if name.endswith((*JSON_SUFFIXES, PARQUET)) or os.path.isdir(path):
        return DatasetSpec(name, path, path if os.path.isdir(path) else os.path.dirname(path), percent)
    near = difflib.get_close_matches(name, data_dict, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown data set {name!r}; {hint}known: {_known()}. Add it to data_dict in qwenvl/data/__init__.py, "
        f"or give the path of a {', '.join(JSON_SUFFIXES)} or {PARQUET} file or of a folder, or {HUB_PREFIX}org/name "
        "from the Hugging Face hub"
    )


def _percent(entry: str, share: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", share) or not 0 < float(share) <= 100:
        raise UserError(f"{entry!r}: the percentage {share!r} is not above 0 and at most 100; write it as in name%50")
    return float(share)


def _known() -> str:
    return ", ".join(sorted(data_dict))


def _located(path: str) -> str:
    """Fill in environment variables and find a relative path in the current folder or else in the repository's."""
    path = os.path.expanduser(re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _from_environment, path))
    if not path or os.path.exists(path) or not (_REPOSITORY / path).exists():
        return path
    return str(_REPOSITORY / path)


def _from_environment(variable: re.Match[str]) -> str:
    name, default = variable.groups()
    value = os.environ.get(name) or default
    if value is None:
        raise UserError(
            f"the data set's path needs the environment variable {name}, which is not set: export {name}=..."
        )
    return value

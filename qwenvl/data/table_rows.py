"""Read rows of tables: parquet files, a folder from `datasets.save_to_disk`, or a dataset on the Hugging Face hub.

Images and videos are returned as they are stored, `{"bytes", "path"}`; nothing is decoded.
"""

import glob
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from qwenvl.data.json_rows import Row
from qwenvl.errors import UserError

HUB_PREFIX = "hf:"
PARQUET = ".parquet"
# Rows with images take megabytes.
_BATCH = 64
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.parquet")


def is_table(source: str) -> bool:
    """Return whether an annotation path names a table: on the hub, in parquet files, or a folder."""
    return source.startswith(HUB_PREFIX) or source.endswith(PARQUET) or os.path.isdir(source)


def iter_table_rows(source: str) -> Iterator[Row]:
    """Yield the rows of a table; raises `UserError` for one that cannot be read, or that is several splits."""
    return _rows(source, _batches(source))


def _rows(source: str, batches: Iterable[list[dict[str, Any]]]) -> Iterator[Row]:
    index = 0
    try:
        for batch in batches:
            for value in batch:
                yield Row(f"row {index}", index, value)
                index += 1
    except UserError:
        raise
    # A damaged table makes Arrow raise nearly anything.
    except Exception as error:
        raise UserError(f"cannot read it after row {index} ({_one_line(error)}); write it again", path=source) from None


def _batches(source: str) -> Iterator[list[dict[str, Any]]]:
    """Open a table, and return its rows in batches; raises `UserError`."""
    if source.startswith(HUB_PREFIX):
        return _dataset_batches(_load_from_hub(source))
    if os.path.isdir(source):
        if os.path.isfile(os.path.join(source, "state.json")):
            datasets = _import("datasets", source)
            return _dataset_batches(_open_dataset(source, datasets.load_from_disk, source))
        if os.path.isfile(os.path.join(source, "dataset_dict.json")):
            splits = sorted(entry.name for entry in os.scandir(source) if entry.is_dir())
            names = " or ".join(os.path.join(source, split) for split in splits)
            raise UserError(f"a dataset of several splits; name one of them: {names}", path=source)
    return _parquet_batches(source, _parquet_files(source))


def _parquet_files(source: str) -> list[str]:
    if os.path.isdir(source):
        files = sorted(glob.glob(os.path.join(glob.escape(source), f"*{PARQUET}")))
        if not files:
            raise UserError("a folder without parquet files, and none that datasets.save_to_disk wrote", path=source)
        splits = sorted({match[1] for name in files if (match := _SHARD.fullmatch(os.path.basename(name)))})
        if len(splits) > 1:
            patterns = " or ".join(os.path.join(source, f"{split}-*{PARQUET}") for split in splits)
            raise UserError(f"parquet files of several splits; name those of one: {patterns}", path=source)
        return files
    if os.path.isfile(source) or "*" not in source:
        return [source]
    files = sorted(glob.glob(source))
    if not files:
        raise UserError("no such parquet files; correct the path", path=source)
    return files


def _parquet_batches(source: str, files: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    parquet = _import("pyarrow.parquet", source)
    for path in files:
        if not os.path.isfile(path):
            raise UserError("no such annotation file; correct the path or make the file first", path=path)
    files = [_open_dataset(path, parquet.ParquetFile, path) for path in files]
    return (batch.to_pylist() for file in files for batch in file.iter_batches(batch_size=_BATCH))


def _dataset_batches(dataset: Any) -> Iterator[list[dict[str, Any]]]:
    return (table.to_pylist() for table in dataset.with_format("arrow").iter(batch_size=_BATCH))


def _load_from_hub(source: str) -> Any:
    """Load the split given as `hf:org/name`, `hf:org/name:split` or `hf:org/name:config:split`."""
    name, *rest = source.removeprefix(HUB_PREFIX).split(":")
    if not name or len(rest) > 2:
        raise UserError("expected hf:org/name, hf:org/name:split or hf:org/name:config:split", path=source)
    datasets = _import("datasets", source)
    splits = _open_dataset(source, datasets.load_dataset, name, *rest[:-1])
    wanted = rest[-1] if rest else "train" if "train" in splits else None
    if wanted is None and len(splits) == 1:
        wanted = next(iter(splits))
    if wanted not in splits:
        raise UserError(f"name one of its splits, as in hf:{name}:SPLIT: {', '.join(splits)}", path=source)
    return splits[wanted]


def _open_dataset(source: str, function: Any, *args: str) -> Any:
    try:
        return function(*args)
    # The network, the hub, Arrow and the library's own checks each raise their own errors.
    except Exception as error:
        raise UserError(
            f"cannot read the dataset ({_one_line(error)}); correct the path or the name", path=source
        ) from None


def _import(name: str, source: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"reading tables needs the package datasets ({error}): pip install -e .[datasets], or write JSON",
            path=source,
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

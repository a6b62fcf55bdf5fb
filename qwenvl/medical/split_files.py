"""Write the output of a converter: one annotation file per split, the list of dropped studies, and the counts."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from qwenvl.errors import UserError
from qwenvl.utils.files import WholeFiles
from qwenvl.utils.json_text import JsonListWriter, write_json

SPLITS = ("train", "validate", "test")
_FILE_SUFFIX = {"train": "train", "validate": "valid", "test": "test"}


class SplitFiles:
    """Writer of `<name>_train|valid|test.json`, `<name>_dropped.csv` and `stats.json` in one folder, all or none.

    Use it in a `with` block and call `finish` at its end. Raises `UserError` like `WholeFiles`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        dropped_columns: Iterable[str],
        overwrite: bool,
        inputs: Iterable[str | Path | None] = (),
    ):
        self._names = {split: f"{name}_{suffix}.json" for split, suffix in _FILE_SUFFIX.items()}
        self._dropped_name, self._stats_name = f"{name}_dropped.csv", "stats.json"
        self._whole = WholeFiles(
            folder, [*self._names.values(), self._dropped_name, self._stats_name], overwrite, inputs
        )
        self._dropped_columns = (*dropped_columns, "reason")
        self._reasons: Counter[str] = Counter()
        self.stats: dict[str, Any] = {}

    def __enter__(self) -> "SplitFiles":
        self._files = self._whole.__enter__()
        self._writers = {split: JsonListWriter(self._files[name]) for split, name in self._names.items()}
        self._dropped = csv.writer(self._files[self._dropped_name], lineterminator="\n")
        self._dropped.writerow(self._dropped_columns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._whole.__exit__(kind, error, trace)

    def write(self, split: str, encoded: str) -> None:
        """Append one record, encoded as JSON, to its split."""
        self._writers[split].write(encoded)

    def drop(self, *ids_and_reason: Any) -> None:
        """Record that a study was dropped: its ids, then the reason."""
        self._dropped.writerow(ids_and_reason)
        self._reasons[str(ids_and_reason[-1])] += 1

    def finish(self, studies: int, counts: Mapping[str, int]) -> None:
        """Close the lists and write the counts; raises `UserError` if no study yielded a record."""
        for writer in self._writers.values():
            writer.close()
        records = {split: writer.count for split, writer in self._writers.items()}
        dropped = dict(self._reasons.most_common())
        if not any(records.values()):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.items()) or "no study found"
            raise UserError(f"no study could be converted, nothing was written: {reasons}")
        self.stats = {"studies": studies, "records": records, "dropped": dropped, "counts": dict(counts)}
        write_json(self._files[self._stats_name], self.stats)

    def summary(self) -> list[tuple[str, int]]:
        """Return the counts as rows for `print_summary`, without other counts that are zero."""
        rows = [("studies read", self.stats["studies"])]
        rows += [(f"{split} records", count) for split, count in self.stats["records"].items()]
        rows += [(f"dropped: {reason}", count) for reason, count in self.stats["dropped"].items()]
        return rows + [(name, count) for name, count in self.stats["counts"].items() if count]

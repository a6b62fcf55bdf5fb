"""Convert a MIMIC-CXR download to annotation files for training, validation and test."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl.errors import UserError
from qwenvl.medical.mimic.llava_rad import convert_annotations
from qwenvl.medical.mimic.reports import ReportSource, open_reports
from qwenvl.medical.mimic.studies import Converted, MimicOptions, Patient, convert_patients
from qwenvl.medical.mimic.tables import MimicTables, find_table, read_tables
from qwenvl.medical.split_files import SplitFiles
from qwenvl.utils.cli import progress
from qwenvl.utils.parallel import in_parallel

_PATIENTS_PER_TASK = 100
_MAX_NAMES_SHOWN = 5


@dataclass(frozen=True)
class MimicSource:
    """The published files.

    Attributes:
        root: The folder with tables and images.
        reports: The archive or folder of reports; None with `llava_rad`.
        llava_rad: LLaVA-Rad annotation files, in place of `reports`.
        labels: The label table to read, one of `LABEL_TABLES`; None for no labels.
        split_csv: The split table, if it is not in `root`.
        metadata_csv: The metadata table, if it is not in `root`.
        labels_csv: The label table, if it is not in `root`.
    """

    root: Path
    reports: str | None = None
    llava_rad: tuple[str, ...] = ()
    labels: str | None = None
    split_csv: str | None = None
    metadata_csv: str | None = None
    labels_csv: str | None = None

    def files(self) -> tuple[str | Path | None, ...]:
        """Return the files that are read besides the images and must not be overwritten."""
        tables = (self.split_csv, self.metadata_csv, self.labels_csv, *self.root.glob("*.csv*"))
        return (self.reports, *self.llava_rad, *tables)


@dataclass(frozen=True)
class MimicResult:
    """The number of studies converted, and the rows of a summary as (name, number)."""

    studies: int
    summary: list[tuple[str, int]]


def convert_mimic(
    source: MimicSource, out: Path, options: MimicOptions, *, overwrite: bool, allow_outside: bool, workers: int
) -> MimicResult:
    """Write the records of each split into `out`.

    Args:
        source: The published files.
        out: The folder of the output.
        options: What the records contain.
        overwrite: Replace the files of an earlier run.
        allow_outside: Accept images of LLaVA-Rad files outside `source.root`.
        workers: The number of processes.

    Raises:
        UserError: For a file that cannot be read, or an output that cannot be written.
    """
    counts: Counter[str] = Counter()
    studies = 0
    parts = (
        _from_annotations(source, options, allow_outside)
        if source.llava_rad
        else _from_reports(source, options, workers)
    )
    with SplitFiles(out, "mimic", ["subject_id", "study_id"], overwrite, source.files()) as output:
        for result in parts:
            for split, record in result.records:
                output.write(split, record)
            for dropped in result.dropped:
                output.drop(*dropped)
            counts.update(result.counts)
            studies += result.studies
        output.finish(studies, counts)
    return MimicResult(studies, output.summary())


def find_image_root(root: Path) -> Path:
    """Return the folder with p10 to p19: `root/files` or `root`. Raises `UserError` for neither."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give --jpg_root the folder of MIMIC-CXR-JPG")
    folder = next((each for each in (root / "files", root) if any(each.glob("p[0-9][0-9]"))), None)
    if folder is None:
        found = ", ".join(sorted(path.name for path in root.glob("*"))[:_MAX_NAMES_SHOWN]) or "nothing"
        raise UserError(
            f"{root}: no folders p10 to p19 in it or in its folder files, found {found}; give --jpg_root the folder of "
            "MIMIC-CXR-JPG"
        )
    return folder


def _from_annotations(source: MimicSource, options: MimicOptions, allow_outside: bool) -> Iterator[Converted]:
    paths = [Path(path) for path in source.llava_rad]
    yield from progress(convert_annotations(paths, options, allow_outside), "LLaVA-Rad", "part")


def _from_reports(source: MimicSource, options: MimicOptions, workers: int) -> Iterator[Converted]:
    reports = open_reports(Path(source.reports))
    tables = _tables(source)
    tasks = (([*patients], options) for patients in _batched(_patients(tables, reports), _PATIENTS_PER_TASK))
    total = -(-len(tables.patients) // _PATIENTS_PER_TASK)
    yield from progress(in_parallel(convert_patients, tasks, workers), "MIMIC-CXR", "part", total)
    others = Counter({"reports without a study": reports.count_others(tables.patients)})
    yield Converted(counts=tables.counts + others)


def _tables(source: MimicSource) -> MimicTables:
    split = Path(source.split_csv) if source.split_csv else find_table(source.root, "split")
    metadata = Path(source.metadata_csv) if source.metadata_csv else find_table(source.root, "metadata")
    labels = None
    if source.labels:
        labels = Path(source.labels_csv) if source.labels_csv else find_table(source.root, source.labels)
    return read_tables(split, metadata, labels)


def _patients(tables: MimicTables, reports: ReportSource) -> Iterator[Patient]:
    for found in reports.iter_patients(sorted(tables.patients)):
        images = tables.patients[found.subject_id]
        studies = {image.study_id for image in images} if tables.label_names else ()
        yield Patient(images, found, {study_id: tables.study_labels(study_id) for study_id in studies})


def _batched(items: Iterable[Patient], size: int) -> Iterator[list[Patient]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group

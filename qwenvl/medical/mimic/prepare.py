"""Turn a MIMIC-CXR download into annotation files for training, validation and test."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwenvl.medical.mimic.llava_rad import convert_annotations
from qwenvl.medical.mimic.reports import ReportSource, open_reports
from qwenvl.medical.mimic.studies import Converted, MimicOptions, Patient, convert_patients
from qwenvl.medical.mimic.tables import MimicTables, find_table, read_tables
from qwenvl.medical.split_files import SplitFiles
from qwenvl.utils.cli import progress
from qwenvl.utils.parallel import in_parallel

_PATIENTS_PER_TASK = 100


@dataclass(frozen=True)
class MimicSource:
    """The published files: the folder with tables and images, and reports (an archive or folder) or LLaVA-Rad files.

    `labels` names the label table to read. Tables that are not given are looked for in `root`.
    """

    root: Path
    reports: str | None = None
    llava_rad: tuple[str, ...] = ()
    labels: str | None = None
    split_csv: str | None = None
    metadata_csv: str | None = None
    labels_csv: str | None = None

    def files(self) -> tuple[str | Path | None, ...]:
        """Return what is read beside the images, none of which may be written over."""
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
    """Write the records of each split into `out`, with `workers` processes.

    `allow_outside` takes images of LLaVA-Rad files outside `source.root`. Raises `UserError` for what cannot be read.
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


def _from_annotations(source: MimicSource, options: MimicOptions, allow_outside: bool) -> Iterator[Converted]:
    paths = [Path(path) for path in source.llava_rad]
    yield from progress(convert_annotations(paths, options, allow_outside), "LLaVA-Rad", "part")


def _from_reports(source: MimicSource, options: MimicOptions, workers: int) -> Iterator[Converted]:
    reports = open_reports(Path(source.reports))
    tables = _tables(source)
    tasks = (([*patients], options) for patients in _grouped(_patients(tables, reports), _PATIENTS_PER_TASK))
    total = -(-len(tables.patients) // _PATIENTS_PER_TASK)
    yield from progress(in_parallel(convert_patients, tasks, workers), "MIMIC-CXR", "part", total)
    others = Counter({"reports without a study": reports.of_others(tables.patients)})
    yield Converted(counts=tables.counts + others)


def _tables(source: MimicSource) -> MimicTables:
    split = Path(source.split_csv) if source.split_csv else find_table(source.root, "split")
    metadata = Path(source.metadata_csv) if source.metadata_csv else find_table(source.root, "metadata")
    labels = None
    if source.labels:
        labels = Path(source.labels_csv) if source.labels_csv else find_table(source.root, source.labels)
    return read_tables(split, metadata, labels)


def _patients(tables: MimicTables, reports: ReportSource) -> Iterator[Patient]:
    for found in reports.of_patients(sorted(tables.patients)):
        images = tables.patients[found.subject_id]
        studies = {image.study_id for image in images} if tables.label_names else ()
        yield Patient(images, found, {study_id: tables.study_labels(study_id) for study_id in studies})


def _grouped(items: Iterable[Patient], size: int) -> Iterator[list[Patient]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group

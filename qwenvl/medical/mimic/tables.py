"""Read the tables of MIMIC-CXR-JPG: the split, metadata and label CSVs, joined into the images of each patient.

Published layout: MIMIC-CXR-JPG 2.x on PhysioNet (Johnson et al. 2019), `mimic-cxr-2.0.0-<table>.csv` or `.csv.gz`.
"""

import csv
import gzip
import io
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qwenvl.data.media.files import file_flaw
from qwenvl.errors import UserError
from qwenvl.medical.split_files import SPLITS

LABEL_TABLES = ("chexpert", "negbio")
FRONTAL = ("PA", "AP")
# The view position is blank for many images whose view code says the same in words.
_VIEW_OF_CODE = {"postero-anterior": "PA", "antero-posterior": "AP", "lateral": "LATERAL", "left lateral": "LL"}
_IDS = ("dicom_id", "subject_id", "study_id")
_DICOM_ID = re.compile(r"[0-9A-Za-z.-]*[0-9A-Za-z]")


class ImageRow(NamedTuple):
    """One image: `taken` is (date, time) as numbers that sort, None where the table has none."""

    study_id: int
    dicom_id: str
    split: str
    view: str
    taken: tuple[int, float] | None


@dataclass
class MimicTables:
    """The images of each patient by subject id, the labels of each study, and what was odd in the tables."""

    patients: dict[int, list[ImageRow]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def study_labels(self, study_id: int) -> dict[str, float]:
        """Return the labels that the table gives to a study: 1 present, 0 absent, -1 uncertain."""
        cells = self.labels.get(study_id, "").split(",")
        return {name: float(cell) for name, cell in zip(self.label_names, cells, strict=False) if cell}


def find_table(folder: Path, table: str) -> Path:
    """Return the one CSV of `folder` that holds `table`; of a plain and a packed one, the plain one.

    Raises `UserError` naming what was looked for and what is there.
    """
    found = sorted(folder.glob(f"mimic-cxr-*-{table}.csv")) or sorted(folder.glob(f"mimic-cxr-*-{table}.csv.gz"))
    if len(found) == 1:
        return found[0]
    there = ", ".join(sorted(path.name for path in folder.glob("*.csv*"))) or "no CSV at all"
    problem = f"{len(found)} tables" if found else "no table"
    raise UserError(
        f"{folder}: {problem} mimic-cxr-2.0.0-{table}.csv or .csv.gz, found {there}; name the file with --{table}_csv"
    )


def read_tables(split_csv: Path, metadata_csv: Path, labels_csv: Path | None = None) -> MimicTables:
    """Join the tables into images by patient, sorted by study; images in one table alone are counted.

    Raises `UserError` for a file, column or cell that is missing or wrong, and for an id given twice with two meanings.
    """
    tables = MimicTables()
    splits = _read_splits(split_csv, tables.counts)
    _read_images(metadata_csv, splits, tables)
    tables.counts["images in the split table alone"] += sum(1 for row in splits.values() if row is not None)
    if labels_csv is not None:
        _read_labels(labels_csv, tables)
    for images in tables.patients.values():
        images.sort()
    return tables


def _read_splits(path: Path, counts: Counter[str]) -> dict[str, tuple[int, str] | None]:
    """Return (study, split) of each image, by dicom id."""
    splits: dict[str, tuple[int, str] | None] = {}
    for where, (dicom_id, _, study_id, split) in _rows(path, (*_IDS, "split")):
        row = (_number(where, "study_id", study_id), sys.intern(split))
        if split not in SPLITS:
            raise UserError(f"{where}: split {split!r}, expected one of {', '.join(SPLITS)}")
        known = splits.setdefault(_checked_id(where, dicom_id), row)
        if known is not row:
            _same_or_error(where, dicom_id, known, row)
            counts["repeated rows in the split table"] += 1
    return splits


def _read_images(path: Path, splits: dict[str, tuple[int, str] | None], tables: MimicTables) -> None:
    optional = ("ViewCodeSequence_CodeMeaning",)
    columns = (*_IDS, "ViewPosition", "StudyDate", "StudyTime")
    for where, (dicom_id, subject, study, position, date, time, code) in _rows(path, columns, optional):
        tables.counts["images in the metadata table"] += 1
        if dicom_id not in splits:
            tables.counts["images without a split"] += 1
            continue
        subject_id, study_id = _number(where, "subject_id", subject), _number(where, "study_id", study)
        images = tables.patients.setdefault(subject_id, [])
        view = position.strip().upper() or _VIEW_OF_CODE.get(code.strip().lower(), "")
        taken = (_number(where, "StudyDate", date), _fraction(where, "StudyTime", time)) if date and time else None
        split = splits[dicom_id]
        if split is None:
            known = next((image for image in images if image.dicom_id == dicom_id), None)
            _same_or_error(where, dicom_id, known and known.study_id, study_id)
            tables.counts["repeated rows in the metadata table"] += 1
            continue
        _same_or_error(where, dicom_id, split[0], study_id)
        images.append(ImageRow(study_id, dicom_id, split[1], sys.intern(view), taken))
        # Marks the image as seen, and leaves those that the metadata does not have.
        splits[dicom_id] = None


def _read_labels(path: Path, tables: MimicTables) -> None:
    header = _header(path)
    tables.label_names = tuple(name for name in header if name not in _IDS)
    for where, (_, study, *cells) in _rows(path, ("subject_id", "study_id", *tables.label_names)):
        for name, cell in zip(tables.label_names, cells, strict=True):
            if cell:
                _fraction(where, name, cell)
        tables.labels[_number(where, "study_id", study)] = ",".join(cells)


def _header(path: Path) -> list[str]:
    return [name.strip() for name in next(_records(path), (0, []))[1]]


def _rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (file and line, the cells of `columns` and `optional`) of each row; an absent optional cell is empty."""
    records = _records(path)
    header = [name.strip() for name in next(records, (0, []))[1]]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "an empty file"
        raise UserError(f"{path}: no column {', '.join(missing)}; found {found}; give the table of MIMIC-CXR-JPG")
    places = [header.index(name) if name in header else None for name in (*columns, *optional)]
    for line, cells in records:
        if len(cells) != len(header):
            raise UserError(f"{path} line {line}: {len(cells)} cells, expected {len(header)}; the file is damaged")
        yield f"{path} line {line}", tuple("" if place is None else cells[place] for place in places)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with _opened(path) as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it ({error}); is the download complete?") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); is it the published table?") from None
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}; is it the published table?") from None


def _opened(path: Path) -> io.TextIOBase:
    flaw = file_flaw(str(path), "table", may_be_empty=True)
    if flaw is not None:
        raise UserError(f"{path}: {flaw}")
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _checked_id(where: str, dicom_id: str) -> str:
    """Return a dicom id that is safe as a file name."""
    if not _DICOM_ID.fullmatch(dicom_id):
        raise UserError(f"{where}: dicom_id {dicom_id!r} is no file name of an image; correct the table")
    return dicom_id


def _number(where: str, column: str, cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal()):
        raise UserError(f"{where}: {column} {cell!r} is not a whole number; correct the table")
    return int(cell)


def _fraction(where: str, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{where}: {column} {cell!r} is not a number; correct the table") from None


def _same_or_error(where: str, dicom_id: str, known: object, given: object) -> None:
    if known != given:
        raise UserError(f"{where}: dicom_id {dicom_id} is given twice, as {known} and as {given}; correct the tables")

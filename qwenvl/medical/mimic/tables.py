"""Read the split, metadata and label tables of MIMIC-CXR-JPG and join them into the images of each patient.

Format: MIMIC-CXR-JPG 2.x on PhysioNet (Johnson et al. 2019), `mimic-cxr-2.0.0-<table>.csv` or `.csv.gz`.
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

from qwenvl.errors import UserError
from qwenvl.medical.input_files import check_input_file
from qwenvl.medical.split_files import SPLITS

LABEL_TABLES = ("chexpert", "negbio")
FRONTAL = ("PA", "AP")
# Many images have a blank view position, but a view code with the same information in words.
_VIEW_OF_CODE = {"postero-anterior": "PA", "antero-posterior": "AP", "lateral": "LATERAL", "left lateral": "LL"}
_IDS = ("dicom_id", "subject_id", "study_id")
# More digits than any id or date has: int() refuses thousands.
_MAX_DIGITS = 18
_DICOM_ID = re.compile(r"[0-9A-Za-z.-]*[0-9A-Za-z]")


class ImageRow(NamedTuple):
    """One image; `taken` is its (date, time) as numbers that sort, None if the table has none."""

    study_id: int
    dicom_id: str
    split: str
    view: str
    taken: tuple[int, float] | None


@dataclass
class MimicTables:
    """The images of each patient by subject id, the labels of each study, and counts of irregular rows."""

    patients: dict[int, list[ImageRow]] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def study_labels(self, study_id: int) -> dict[str, float]:
        """Return the labels of a study: 1 for present, 0 for absent, -1 for uncertain."""
        cells = self.labels.get(study_id, "").split(",")
        return {name: float(cell) for name, cell in zip(self.label_names, cells, strict=False) if cell}


def find_table(folder: Path, table: str) -> Path:
    """Return the CSV of `folder` with `table`; a plain file takes precedence over a compressed one.

    Raises `UserError` if there is not exactly one.
    """
    found = sorted(folder.glob(f"mimic-cxr-*-{table}.csv")) or sorted(folder.glob(f"mimic-cxr-*-{table}.csv.gz"))
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(path.name for path in folder.glob("*.csv*"))) or "no CSV"
    problem = f"{len(found)} tables" if found else "no table"
    raise UserError(
        f"{folder}: {problem} mimic-cxr-2.0.0-{table}.csv or .csv.gz, found {names}; name the file with --{table}_csv"
    )


def read_tables(split_csv: Path, metadata_csv: Path, labels_csv: Path | None = None) -> MimicTables:
    """Join the tables into images by patient, sorted by study; images in only one of the tables are counted.

    Raises `UserError` for a file, column or cell that is missing or invalid, and for an id with two different rows.
    """
    tables = MimicTables()
    splits = _read_splits(split_csv, tables.counts)
    _read_images(metadata_csv, splits, tables)
    tables.counts["images only in the split table"] += sum(1 for row in splits.values() if row is not None)
    if labels_csv is not None:
        _read_labels(labels_csv, tables)
    for images in tables.patients.values():
        images.sort()
    return tables


def _read_splits(path: Path, counts: Counter[str]) -> dict[str, tuple[int, str] | None]:
    """Return (study, split) of each image, by dicom id."""
    splits: dict[str, tuple[int, str] | None] = {}
    for location, (dicom_id, _, study_id, split) in _rows(path, (*_IDS, "split")):
        row = (_parse_int(location, "study_id", study_id), sys.intern(split))
        if split not in SPLITS:
            raise UserError(f"{location}: split {split!r}, expected one of {', '.join(SPLITS)}")
        first = splits.setdefault(_check_dicom_id(location, dicom_id), row)
        if first is not row:
            _check_equal(location, dicom_id, first, row)
            counts["repeated rows in the split table"] += 1
    return splits


def _read_images(path: Path, splits: dict[str, tuple[int, str] | None], tables: MimicTables) -> None:
    optional = ("ViewCodeSequence_CodeMeaning",)
    columns = (*_IDS, "ViewPosition", "StudyDate", "StudyTime")
    for location, (dicom_id, subject, study, position, date, time, code) in _rows(path, columns, optional):
        tables.counts["images in the metadata table"] += 1
        if dicom_id not in splits:
            tables.counts["images without a split"] += 1
            continue
        subject_id, study_id = _parse_int(location, "subject_id", subject), _parse_int(location, "study_id", study)
        images = tables.patients.setdefault(subject_id, [])
        view = position.strip().upper() or _VIEW_OF_CODE.get(code.strip().lower(), "")
        taken = (
            (_parse_int(location, "StudyDate", date), _parse_float(location, "StudyTime", time))
            if date and time
            else None
        )
        split = splits[dicom_id]
        if split is None:
            first = next((image for image in images if image.dicom_id == dicom_id), None)
            _check_equal(location, dicom_id, first and first.study_id, study_id)
            tables.counts["repeated rows in the metadata table"] += 1
            continue
        _check_equal(location, dicom_id, split[0], study_id)
        images.append(ImageRow(study_id, dicom_id, split[1], sys.intern(view), taken))
        # Images that are not set to None here are missing in the metadata.
        splits[dicom_id] = None


def _read_labels(path: Path, tables: MimicTables) -> None:
    header = _header(path)
    tables.label_names = tuple(name for name in header if name not in _IDS)
    for location, (_, study, *cells) in _rows(path, ("subject_id", "study_id", *tables.label_names)):
        for name, cell in zip(tables.label_names, cells, strict=True):
            if cell:
                _parse_float(location, name, cell)
        tables.labels[_parse_int(location, "study_id", study)] = ",".join(cells)


def _header(path: Path) -> list[str]:
    return [name.strip() for name in next(_records(path), (0, []))[1]]


def _rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the location and the cells of `columns` and `optional` of each row; absent optional cells are empty."""
    records = _records(path)
    header = [name.strip() for name in next(records, (0, []))[1]]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "an empty file"
        raise UserError(f"{path}: no column {', '.join(missing)}; found {found}; give the table of MIMIC-CXR-JPG")
    indices = [header.index(name) if name in header else None for name in (*columns, *optional)]
    for line, cells in records:
        if len(cells) != len(header):
            raise UserError(f"{path} line {line}: {len(cells)} cells, expected {len(header)}; the file is damaged")
        yield f"{path} line {line}", tuple("" if index is None else cells[index] for index in indices)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        with _open_text(path) as stream:
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


def _open_text(path: Path) -> io.TextIOBase:
    check_input_file(path, "table", may_be_empty=True)
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _check_dicom_id(location: str, dicom_id: str) -> str:
    """Return a dicom id that is a plain file name; raises `UserError` for others."""
    if not _DICOM_ID.fullmatch(dicom_id):
        raise UserError(f"{location}: dicom_id {dicom_id!r} is not a valid file name; correct the table")
    return dicom_id


def _parse_int(location: str, column: str, cell: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) <= _MAX_DIGITS):
        raise UserError(f"{location}: {column} {cell!r} is not a whole number; correct the table")
    return int(cell)


def _parse_float(location: str, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{location}: {column} {cell!r} is not a number; correct the table") from None


def _check_equal(location: str, dicom_id: str, first: object, second: object) -> None:
    if first != second:
        raise UserError(
            f"{location}: dicom_id {dicom_id} is there twice, with {first} and with {second}; correct the tables"
        )

"""Read MIMIC-CXR reports from the published zip or the folder unpacked from it, at any root folder."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from qwenvl.errors import UserError
from qwenvl.medical.input_files import check_input_file

_GROUP = re.compile(r"p\d\d")
_PATIENT = re.compile(r"p(\d+)")
_REPORT = re.compile(r"s(\d+)\.txt")
_MEMBER = re.compile(r"(?:.*/)?p(\d+)/s(\d+)\.txt")
# Where the folders p10 to p19 may be, relative to the folder that the user gives.
_ROOTS = ("", "files", "*", "*/files")
_MAX_NAMES_SHOWN = 5
# 4 MiB, about a thousand times the size of a long report.
_MAX_REPORT_BYTES = 1 << 22


class PatientReports(NamedTuple):
    """The reports of one patient: the texts by study id, or the folder to read them from."""

    subject_id: int
    texts: dict[int, bytes] | str


class ReportSource(Protocol):
    """A source of reports: a folder or an archive."""

    def iter_patients(self, subject_ids: Iterable[int]) -> Iterator[PatientReports]:
        """Yield the reports of each patient, in the order of `subject_ids`."""
        ...

    def count_others(self, subject_ids: Iterable[int]) -> int:
        """Return the number of reports of patients that are not in `subject_ids`."""
        ...


def open_reports(path: Path) -> ReportSource:
    """Return the reports in a folder or a zip; raises `UserError` for a path without reports."""
    if path.is_dir():
        return FolderReports(path)
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{path}: no such folder or zip; give --reports the unpacked reports or mimic-cxr-reports.zip")
    check_input_file(path, "folder or zip")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: neither a folder nor a complete zip; correct --reports, or download the zip again")
    return ZipReports(path)


class FolderReports:
    """Reports unpacked as `p10/p10000032/s50414267.txt` in the given folder or one of the folders `_ROOTS` below it."""

    def __init__(self, path: Path):
        roots = [root for pattern in _ROOTS for root in ([path] if not pattern else sorted(path.glob(pattern)))]
        self._root = next((root for root in roots if root.is_dir() and _names(root, _GROUP)), None)
        if self._root is None:
            found = ", ".join(sorted(os.listdir(path))[:_MAX_NAMES_SHOWN]) or "nothing"
            raise UserError(
                f"{path}: no folders p10 to p19 in it or in its folder files, found {found}; give --reports the "
                "unpacked reports or mimic-cxr-reports.zip"
            )

    def iter_patients(self, subject_ids: Iterable[int]) -> Iterator[PatientReports]:
        """Yield the reports of each patient, in the order of `subject_ids`."""
        for subject_id in subject_ids:
            yield PatientReports(subject_id, os.path.join(self._root, f"p{str(subject_id)[:2]}", f"p{subject_id}"))

    def count_others(self, subject_ids: Iterable[int]) -> int:
        """Return the number of reports of patients that are not in `subject_ids`."""
        named = {f"p{subject_id}" for subject_id in subject_ids}
        folders = (self._root / group / name for group in _names(self._root, _GROUP) for name in self._patients(group))
        return sum(len(_names(folder, _REPORT)) for folder in folders if folder.name not in named)

    def _patients(self, group: str) -> list[str]:
        return _names(self._root / group, _PATIENT)


class ZipReports:
    """Reports in a zip as `.../p10/p10000032/s50414267.txt`, below any folder."""

    def __init__(self, path: Path):
        self._path = path
        self._archive = zipfile.ZipFile(path)
        self._members: dict[int, dict[int, zipfile.ZipInfo]] = {}
        for member in self._archive.infolist():
            hit = _MEMBER.fullmatch(member.filename)
            if hit and not member.filename.startswith("__MACOSX"):
                self._add(int(hit[1]), int(hit[2]), member)
        if not self._members:
            found = ", ".join(self._archive.namelist()[:_MAX_NAMES_SHOWN]) or "nothing"
            raise UserError(
                f"{path}: no reports of the form p10/p10000032/s50414267.txt in it, found {found}; give --reports "
                "mimic-cxr-reports.zip"
            )

    def iter_patients(self, subject_ids: Iterable[int]) -> Iterator[PatientReports]:
        """Yield the reports of each patient, in the order of `subject_ids`; raises `UserError` for a damaged zip."""
        for subject_id in subject_ids:
            members = self._members.get(subject_id, {})
            yield PatientReports(subject_id, {study: self._read(member) for study, member in members.items()})

    def count_others(self, subject_ids: Iterable[int]) -> int:
        """Return the number of reports of patients that are not in `subject_ids`."""
        known = set(subject_ids)
        return sum(len(members) for subject_id, members in self._members.items() if subject_id not in known)

    def _add(self, subject_id: int, study_id: int, member: zipfile.ZipInfo) -> None:
        first = self._members.setdefault(subject_id, {}).setdefault(study_id, member)
        if first is not member:
            raise UserError(
                f"{self._path}: it contains study {study_id} twice, as {first.filename} and as {member.filename}; "
                "give a zip with one report per study"
            )

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.file_size > _MAX_REPORT_BYTES:
            raise UserError(
                f"{self._path}: {member.filename} would unpack to {member.file_size:,} bytes, and a report has at most "
                f"{_MAX_REPORT_BYTES:,}; download the zip again"
            )
        try:
            with self._archive.open(member) as stream:
                # Not `ZipFile.read`: that unpacks gigabytes at once where the size above is a lie.
                return stream.read(_MAX_REPORT_BYTES)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f"{self._path}: cannot unpack {member.filename} ({error}); download the zip again"
            ) from None


def read_texts(reports: PatientReports) -> dict[int, bytes]:
    """Return the bytes of each report of one patient by study id; empty for a patient without reports."""
    if not isinstance(reports.texts, str):
        return reports.texts
    hits = map(_REPORT.fullmatch, _names(reports.texts, _REPORT))
    return {int(hit[1]): _read_file(os.path.join(reports.texts, hit[0])) for hit in hits}


def _read_file(path: str) -> bytes:
    check_input_file(path, "report", _MAX_REPORT_BYTES, may_be_empty=True)
    return Path(path).read_bytes()


def decode_report(data: bytes) -> str | None:
    """Return the text of a report; None if it is not UTF-8, contains a NUL, or is blank."""
    try:
        report = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in report or not report.strip() else report


def _names(folder: str | Path, pattern: re.Pattern[str]) -> list[str]:
    """Return the matching names in a folder, sorted; none if it does not exist or is a file."""
    try:
        return sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot read it ({error.strerror}); correct the permissions") from None

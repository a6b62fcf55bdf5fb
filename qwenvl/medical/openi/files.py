"""Read the published files of IU X-Ray (Open-i, Demner-Fushman et al. 2016): XML reports, PNG films, projections.

`NLMCXR_reports.tgz` holds `ecgen-radiology/<n>.xml`, one report of one patient each; `NLMCXR_png.tgz` holds the films
flat, named as the reports' `parentImage` ids. Which view a film is stands in neither, only in the CSV
`indiana_projections.csv` of the Kaggle edition (uid, filename, projection).
"""

import bz2
import csv
import gzip
import lzma
import os
import re
import tarfile
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from qwenvl.data.media.files import file_flaw
from qwenvl.errors import UserError
from qwenvl.utils.cli import progress
from qwenvl.utils.files import written_whole

_IMAGE_NAME = re.compile(r"(?:CXR)?(\d+)_.*?(IM-.+?)(?:\.dcm)?(?:\.png)?")
_LARGEST_REPORT = 1 << 22
_COPY_CHUNK = 1 << 20
_PACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_HEAD_BYTES = 6
_PROJECTION_COLUMNS = ("uid", "filename", "projection")


@dataclass
class OpeniReport:
    """One report: its sections by small letters, its image ids in order; `flaw` says why it cannot be read."""

    name: str
    uid: str = ""
    sections: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    flaw: str | None = None


def read_reports(path: Path) -> list[OpeniReport]:
    """Read all XML reports of a folder (at any depth) or a .tgz, sorted by number; raises `UserError` for none."""
    reports = [_parse(name, data) for name, data in _xml_files(path)]
    if not reports:
        raise UserError(f"{path}: no .xml report in it; give NLMCXR_reports.tgz or the folder unpacked from it")
    return sorted(reports, key=lambda report: (patient_number(report), report.name))


def patient_number(report: OpeniReport) -> int:
    """Return the number of the report's patient: that of its uId ("CXR123"), else of its file; -1 without one."""
    digits = re.search(r"\d+", report.uid) or re.search(r"\d+", Path(report.name).stem)
    return int(digits[0]) if digits else -1


def find_films(path: Path) -> dict[str, Path]:
    """Return the PNG films below a folder by image id; raises `UserError` for no folder, no film, or an id twice."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give --images NLMCXR_png.tgz or the folder unpacked from it")
    films: dict[str, Path] = {}
    for film in sorted(film for film in path.rglob("*.png") if film.is_file()):
        other = films.setdefault(film.stem, film)
        if other is not film:
            raise UserError(f"{path}: image {film.stem} is there twice, as {other} and as {film}; keep one")
    if not films:
        raise UserError(f"{path}: no .png film in it; give --images NLMCXR_png.tgz or the folder unpacked from it")
    return films


def unpack_films(archive: Path, folder: Path) -> Path:
    """Unpack the PNG films of a .tgz flat into `folder`; each appears whole, and those already there are kept.

    Only the last part of a member's name is used, so nothing can leave `folder`. Raises `UserError` for a damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _archive_errors(archive):
        for member, stream in progress(_members(archive, ".png"), "unpacking films", "film"):
            film = folder / os.path.basename(member.name)
            if film.exists() and film.stat().st_size == member.size:
                continue
            _copy_whole(archive, stream, film)
    return folder


def read_projections(path: Path) -> dict[tuple[str, str], str]:
    """Return "Frontal" or "Lateral" by `image_key` from indiana_projections.csv; raises `UserError`."""
    flaw = file_flaw(str(path), "table", may_be_empty=True)
    if flaw is not None:
        raise UserError(f"{path}: {flaw}")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            missing = [name for name in _PROJECTION_COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "an empty file"
                raise UserError(f"{path}: no column {', '.join(missing)}; found {found}")
            return {image_key(row["filename"]): row["projection"].strip().capitalize() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read it ({error}); give indiana_projections.csv") from None


def image_key(name: str) -> tuple[str, str]:
    """Return what a film's id in Open-i and its file name in the Kaggle edition have in common.

    "CXR1_1_IM-0001-3001" and "1_IM-0001-3001.dcm.png" are one film: ("1", "IM-0001-3001").
    """
    hit = _IMAGE_NAME.fullmatch(name)
    return (hit[1], hit[2]) if hit else ("", name)


def _xml_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in progress(sorted(path.rglob("*.xml")), "reports", "report"):
            flaw = file_flaw(str(file), "report", _LARGEST_REPORT, may_be_empty=True)
            if flaw is not None:
                raise UserError(f"{file}: {flaw}")
            yield file.name, file.read_bytes()
        return
    with _archive_errors(path):
        for member, stream in progress(_members(path, ".xml"), "reports", "report"):
            yield os.path.basename(member.name), stream.read(_LARGEST_REPORT)


def _members(archive: Path, suffix: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield the files of a tar archive, packed or not; raises `tarfile.ReadError` where its end is missing."""
    with _unpacked(archive) as file, tarfile.open(fileobj=file, mode="r|") as members:
        for member in members:
            stream = members.extractfile(member) if member.isfile() and member.name.endswith(suffix) else None
            if stream is not None and not os.path.basename(member.name).startswith("."):
                yield member, stream
        # The rest is where gzip keeps its checksum.
        while file.read(_COPY_CHUNK):
            pass
        # tarfile takes the end of the file for the end of the archive, which is at least one block of zeros.
        if file.tell() < members.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def _unpacked(archive: Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        head = file.read(_HEAD_BYTES)
    openers = (opener for mark, opener in _PACKERS.items() if head.startswith(mark))
    return next(openers, open)(archive, "rb")


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    """Say in one line what is wrong with an archive that is read within."""
    flaw = file_flaw(str(archive), "file or folder")
    if flaw is not None:
        raise UserError(f"{archive}: {flaw}")
    try:
        yield
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive}: no whole tar archive ({error}); is the download complete?") from None


def _copy_whole(archive: Path, stream: IO[bytes], film: Path) -> None:
    """Copy a member of an archive to a file that appears whole or not at all; raises as reading the archive does."""
    with written_whole(film, exclusive=True) as unfinished, open(unfinished, "wb") as copy:
        while chunk := stream.read(_COPY_CHUNK):
            try:
                copy.write(chunk)
            except OSError as error:
                raise UserError(f"{film}: cannot write it ({error.strerror}); make room, or correct --out") from None


def _parse(name: str, data: bytes) -> OpeniReport:
    try:
        root = ET.fromstring(data)
    # An encoding that Python does not know comes as LookupError, a NUL as ValueError.
    except (ET.ParseError, LookupError, ValueError):
        return OpeniReport(name, flaw="report is no well-formed XML")
    uid = root.find(".//uId")
    report = OpeniReport(name, uid.get("id", "") if uid is not None else "")
    for section in root.iter("AbstractText"):
        report.sections[section.get("Label", "").strip().lower()] = "".join(section.itertext())
    report.images = [image.get("id", "") for image in root.iter("parentImage")]
    return report

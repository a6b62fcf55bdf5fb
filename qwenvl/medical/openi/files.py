"""Read the published files of IU X-Ray (Open-i, Demner-Fushman et al. 2016): XML reports, PNG images, projections.

`NLMCXR_reports.tgz` contains `ecgen-radiology/<n>.xml`, one report of one patient each. `NLMCXR_png.tgz` contains the
images in one folder, named by the `parentImage` ids of the reports. The view of an image is only in the table
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

from qwenvl.errors import UserError
from qwenvl.medical.input_files import check_input_file
from qwenvl.utils.cli import progress
from qwenvl.utils.files import written_whole

_IMAGE_NAME = re.compile(r"(?:CXR)?(\d+)_.*?(IM-.+?)(?:\.dcm)?(?:\.png)?")
_MAX_REPORT_BYTES = 1 << 22
_COPY_CHUNK = 1 << 20
_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_HEAD_BYTES = 6
_PROJECTION_COLUMNS = ("uid", "filename", "projection")


@dataclass
class OpeniReport:
    """One report: its sections by lower-case name, its image ids in order; `problem` is why it cannot be read."""

    name: str
    uid: str = ""
    sections: dict[str, str] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    problem: str | None = None


def read_reports(path: Path) -> list[OpeniReport]:
    """Read the XML reports of a folder (at any depth) or a .tgz, sorted by number; raises `UserError` for none."""
    reports = [_parse(name, data) for name, data in _xml_files(path)]
    if not reports:
        raise UserError(f"{path}: no .xml report in it; give NLMCXR_reports.tgz or the folder unpacked from it")
    return sorted(reports, key=lambda report: (patient_number(report), report.name))


def patient_number(report: OpeniReport) -> int:
    """Return the number of a report's patient, from its uId ("CXR123") or its file name; -1 without one."""
    digits = re.search(r"\d+", report.uid) or re.search(r"\d+", Path(report.name).stem)
    return int(digits[0]) if digits else -1


def find_images(path: Path) -> dict[str, Path]:
    """Return the PNG images below a folder by image id; raises `UserError` for no image, or two with one id."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give --images NLMCXR_png.tgz or the folder unpacked from it")
    images: dict[str, Path] = {}
    for image in sorted(image for image in path.rglob("*.png") if image.is_file()):
        first = images.setdefault(image.stem, image)
        if first is not image:
            raise UserError(f"{path}: image {image.stem} is there twice, as {first} and as {image}; remove one")
    if not images:
        raise UserError(f"{path}: no .png image in it; give --images NLMCXR_png.tgz or the folder unpacked from it")
    return images


def unpack_images(archive: Path, folder: Path) -> Path:
    """Unpack the PNG images of a .tgz into `folder`, without subfolders; those already there are kept.

    Only the last part of a member's name is used, so no file is written outside `folder`. Raises `UserError` for a
    damaged archive.
    """
    with _archive_errors(archive):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot make the folder ({error.strerror}); give another --out") from None
        for member, stream in progress(_members(archive, ".png"), "unpacking", "image"):
            image = folder / os.path.basename(member.name)
            if image.exists() and image.stat().st_size == member.size:
                continue
            _copy_whole(stream, image)
    return folder


def read_projections(path: Path) -> dict[tuple[str, str], str]:
    """Return "Frontal" or "Lateral" by `image_key` from indiana_projections.csv; raises `UserError`."""
    check_input_file(path, "table", may_be_empty=True)
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            missing = [name for name in _PROJECTION_COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "an empty file"
                raise UserError(f"{path}: no column {', '.join(missing)}, found {found}; give indiana_projections.csv")
            projections = {}
            for row in rows:
                if row["filename"] is None or row["projection"] is None:
                    raise UserError(f"{path} line {rows.line_num}: a cell is missing; download the table again")
                projections[image_key(row["filename"])] = row["projection"].strip().capitalize()
            return projections
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot read it ({error}); give indiana_projections.csv") from None


def image_key(name: str) -> tuple[str, str]:
    """Return the part that an image's id in Open-i and its file name in the Kaggle edition have in common.

    "CXR1_1_IM-0001-3001" and "1_IM-0001-3001.dcm.png" are the same image: ("1", "IM-0001-3001").
    """
    hit = _IMAGE_NAME.fullmatch(name)
    return (hit[1], hit[2]) if hit else ("", name)


def _xml_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in progress(sorted(path.rglob("*.xml")), "reports", "report"):
            check_input_file(file, "report", _MAX_REPORT_BYTES, may_be_empty=True)
            yield file.name, file.read_bytes()
        return
    with _archive_errors(path):
        for member, stream in progress(_members(path, ".xml"), "reports", "report"):
            yield os.path.basename(member.name), stream.read(_MAX_REPORT_BYTES)


def _members(archive: Path, suffix: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yield the files of a tar archive, compressed or not; raises `tarfile.ReadError` for one without its end."""
    with _open_decompressed(archive) as file, tarfile.open(fileobj=file, mode="r|") as members:
        for member in members:
            stream = members.extractfile(member) if member.isfile() and member.name.endswith(suffix) else None
            if stream is not None and not os.path.basename(member.name).startswith("."):
                yield member, stream
        # The checksum of gzip is at the end of the file, which tarfile does not read.
        while file.read(_COPY_CHUNK):
            pass
        # An archive ends with blocks of zeros, but tarfile also accepts one that stops before them (`TarFile.next`):
        # https://github.com/python/cpython/blob/v3.11.7/Lib/tarfile.py#L2617
        if file.tell() < members.offset + tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def _open_decompressed(archive: Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        head = file.read(_HEAD_BYTES)
    openers = (opener for mark, opener in _DECOMPRESSORS.items() if head.startswith(mark))
    return next(openers, open)(archive, "rb")


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    """Turn errors of reading an archive into `UserError`."""
    check_input_file(archive, "file or folder")
    try:
        yield
    except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive}: not a complete tar archive ({error}); download it again") from None


def _copy_whole(stream: IO[bytes], target: Path) -> None:
    """Copy a member of an archive to a file that appears only when it is complete."""
    with written_whole(target, exclusive=True) as unfinished, open(unfinished, "wb") as copy:
        while chunk := stream.read(_COPY_CHUNK):
            try:
                copy.write(chunk)
            except OSError as error:
                raise UserError(f"{target}: cannot write it ({error.strerror}); make room, or correct --out") from None


def _parse(name: str, data: bytes) -> OpeniReport:
    try:
        root = ET.fromstring(data)
    # LookupError: an unknown encoding; ValueError: a NUL.
    except (ET.ParseError, LookupError, ValueError):
        return OpeniReport(name, problem="report is not well-formed XML")
    uid = root.find(".//uId")
    report = OpeniReport(name, uid.get("id", "") if uid is not None else "")
    for section in root.iter("AbstractText"):
        report.sections[section.get("Label", "").strip().lower()] = "".join(section.itertext())
    report.images = [image.get("id", "") for image in root.iter("parentImage")]
    return report

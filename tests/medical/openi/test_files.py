"""Tests of reading the published files of IU X-Ray (Open-i)."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.openi.files import (
    OpeniReport,
    find_images,
    image_key,
    patient_number,
    read_projections,
    read_reports,
    unpack_images,
)
from tests.medical.openi.openi_files import SECTIONS, report_xml


def _tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_report_has_its_sections_and_images_in_order(tmp_path: Path):
    (tmp_path / "12.xml").write_bytes(report_xml(12, ("b", "a")))
    sections = {name.lower(): text for name, text in SECTIONS.items()}
    assert read_reports(tmp_path) == [OpeniReport("12.xml", "CXR12", sections, ["CXR12_b", "CXR12_a"])]


def test_reports_of_a_folder_and_of_an_archive_are_sorted_by_number(tmp_path: Path):
    members = {f"ecgen-radiology/{number}.xml": report_xml(number) for number in (10, 9, 100)}
    for name, data in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    packed = read_reports(_tar(tmp_path / "reports.tgz", members | {"ecgen-radiology/._9.xml": b"x", "a.txt": b"x"}))
    assert [report.uid for report in packed] == ["CXR9", "CXR10", "CXR100"]
    assert read_reports(tmp_path / "folder") == packed


@pytest.mark.parametrize(
    "data",
    [
        report_xml(1)[:-9],
        b"",
        report_xml(1, FINDINGS="a\0b"),
        report_xml(1).replace(b"utf-8", b"no-such"),
    ],
)
def test_a_report_that_is_not_xml_has_a_problem_and_no_sections(tmp_path: Path, data: bytes):
    (tmp_path / "1.xml").write_bytes(data)
    assert read_reports(tmp_path) == [OpeniReport("1.xml", problem="report is not well-formed XML")]


def test_a_patient_is_numbered_by_uid_or_file_name():
    assert patient_number(OpeniReport("7.xml", "CXR12")) == 12
    assert patient_number(OpeniReport("7.xml")) == 7
    assert patient_number(OpeniReport("x.xml")) == -1


@pytest.mark.parametrize(
    "name", ["CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "1_IM-0001-3001.png", "CXR1_1_IM-0001-3001.png"]
)
def test_both_editions_give_an_image_the_same_key(name: str):
    assert image_key(name) == ("1", "IM-0001-3001")


def test_a_name_in_another_form_is_its_own_key():
    assert image_key("chest.png") == ("", "chest.png")


def test_projections_are_read_by_image(tmp_path: Path):
    table = tmp_path / "indiana_projections.csv"
    table.write_bytes(b"\xef\xbb\xbfuid,filename,projection\n1,1_IM-0001-3001.dcm.png, FRONTAL\n")
    assert read_projections(table) == {("1", "IM-0001-3001"): "Frontal"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no column uid, filename, projection, found an empty file"),
        (b"uid,file\n", "no column filename, projection, found uid, file; give indiana_projections.csv"),
        (b"uid,filename,projection\n1,a.png\n", "line 2: a cell is missing"),
        (b"uid,filename,projection\n1,a\xe9.png,Frontal\n", "cannot read it"),
    ],
)
def test_another_table_is_the_users_error(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=f"a.csv:? {message}"):
        read_projections(tmp_path / "a.csv")
    with pytest.raises(UserError, match="no such table"):
        read_projections(tmp_path / "none.csv")


def test_images_are_found_by_id_at_any_depth_and_only_once(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").touch()
    (tmp_path / "y.png").touch()
    assert find_images(tmp_path) == {"x": tmp_path / "a" / "x.png", "y": tmp_path / "y.png"}
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match="image x is there twice, as .*a/x.png and as .*x.png; remove one"):
        find_images(tmp_path)


def test_folders_without_reports_or_images_and_missing_ones_are_the_users_error(tmp_path: Path):
    (tmp_path / "bad.tgz").write_bytes(b"no tar")
    for read in (read_reports, lambda path: unpack_images(path, tmp_path / "images")):
        with pytest.raises(UserError, match="no such file or folder"):
            read(tmp_path / "none")
        with pytest.raises(UserError, match="bad.tgz: not a complete tar archive"):
            read(tmp_path / "bad.tgz")
    with pytest.raises(UserError, match="no .xml report in it"):
        read_reports(tmp_path)
    with pytest.raises(UserError, match="no .png image in it"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "none")


def test_images_are_unpacked_into_one_folder_and_never_outside(tmp_path: Path):
    archive = _tar(tmp_path / "a.tgz", {"../../evil.png": b"png", "deep/b.png": b"png", "c.txt": b"x"})
    assert unpack_images(archive, tmp_path / "x" / "images") == tmp_path / "x" / "images"
    assert sorted(path.name for path in (tmp_path / "x" / "images").iterdir()) == ["b.png", "evil.png"]
    assert not (tmp_path / "evil.png").exists() and not (tmp_path.parent / "evil.png").exists()


def test_images_that_are_there_are_kept_and_incomplete_ones_replaced(tmp_path: Path):
    archive, folder = _tar(tmp_path / "a.tgz", {"a.png": b"abc", "b.png": b"abc"}), tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"ABC")
    (folder / "b.png").write_bytes(b"A")
    unpack_images(archive, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.png": b"ABC", "b.png": b"abc"}


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path):
    (tmp_path / "images").touch()
    with pytest.raises(UserError, match="images: cannot make the folder"):
        unpack_images(_tar(tmp_path / "a.tgz", {"a.png": b"abc"}), tmp_path / "images")


@pytest.mark.parametrize("packing", ["w:gz", "w", "w:bz2", "w:xz"])
def test_an_archive_that_is_truncated_anywhere_is_refused_in_one_line(tmp_path: Path, packing: str):
    with tarfile.open(tmp_path / "whole.tgz", packing) as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"CXR{number}.png")
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(range(70)) * 10))
    data = (tmp_path / "whole.tgz").read_bytes()
    unpack_images(tmp_path / "whole.tgz", tmp_path / "whole")
    assert len(list((tmp_path / "whole").iterdir())) == 3
    # The zeros at the end of a plain tar are its padding, without which it is whole.
    end = len(data.rstrip(b"\0")) + 300 if packing == "w" else len(data)
    for length in {*range(0, end, 1 if packing != "w" else 100), end - 1}:
        (tmp_path / "cut.tgz").write_bytes(data[:length])
        with pytest.raises(
            UserError, match="cut.tgz: (not a complete tar archive .*download it again|the file or folder is empty)"
        ) as error:
            unpack_images(tmp_path / "cut.tgz", tmp_path / "films")
        assert "\n" not in str(error.value)
        images = list((tmp_path / "films").iterdir()) if (tmp_path / "films").exists() else []
        assert all(image.suffix == ".png" and image.stat().st_size == 700 for image in images)


def test_pipes_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.tgz")
    for read in (read_reports, lambda path: unpack_images(path, tmp_path / "images")):
        with pytest.raises(UserError, match="pipe.tgz: a named pipe"):
            read(tmp_path / "pipe.tgz")
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(UserError, match="pipe.xml: a named pipe"):
        read_reports(tmp_path)

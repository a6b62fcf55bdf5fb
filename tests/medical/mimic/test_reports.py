"""Tests of reading reports from a folder or a zip."""

import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.mimic.reports import PatientReports, ReportSource, decode_report, open_reports, read_texts
from tests.medical.mimic.mimic_tree import Tree, read_stats


def _texts(source: ReportSource, *subject_ids: int) -> dict[int, dict[int, bytes]]:
    return {reports.subject_id: read_texts(reports) for reports in source.iter_patients(subject_ids)}


@pytest.fixture
def two_patients(tree: Tree) -> Tree:
    return tree.study(11000002, 50000003, report="c").study(10000001, 50000001, report="a").study(10000001, 50000002)


@pytest.mark.parametrize("root", ["", "files", "physionet", "physionet/files"])
def test_a_folder_is_read_whatever_its_root(tmp_path: Path, root: str):
    folder = tmp_path / root / "p10" / "p10000001"
    folder.mkdir(parents=True)
    (folder / "s50000001.txt").write_text("a")
    (folder / "notes.txt").write_text("not a report")
    assert _texts(open_reports(tmp_path), 10000001) == {10000001: {50000001: b"a"}}


@pytest.mark.parametrize("zip_root", ["files/", "", "mimic-cxr-reports/files/", "a/b/c/"])
def test_a_zip_is_read_whatever_its_root(two_patients: Tree, zip_root: str):
    source = open_reports(two_patients.write(zip_root=zip_root) / "reports.zip")
    texts = _texts(source, 11000002, 10000001, 12000000)
    assert list(texts) == [11000002, 10000001, 12000000]
    assert texts[11000002] == {50000003: b"c"} and texts[10000001].keys() == {50000001, 50000002}
    assert texts[12000000] == {}


def test_reports_of_other_patients_are_counted(two_patients: Tree):
    folder, packed = open_reports(two_patients.write()), open_reports(two_patients.write("files/") / "reports.zip")
    for source in (folder, packed):
        assert [source.count_others(known) for known in ([], [10000001], [10000001, 11000002])] == [3, 1, 0]


def test_reports_without_a_study_are_counted(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001)
    for name in ("p10/p10000001/s50000009.txt", "p10/p10000007/s50000010.txt", "p11/p11000007/s50000011.txt"):
        tree.reports[name] = b"x"
    convert(tree.write())
    assert read_stats(tmp_path / "out")["counts"]["reports without a study"] == 3
    convert(tree.write(zip_root="files/"), reports="reports.zip")
    assert read_stats(tmp_path / "out")["counts"]["reports without a study"] == 3


@pytest.mark.parametrize("data", [b"caf\xe9", b"a\0b", b" \n", b""])
def test_what_is_not_text_has_no_report(data: bytes):
    assert decode_report(data) is None


def test_text_is_decoded_as_utf8():
    assert decode_report("Café".encode()) == "Café"


def _understate_the_size(path: Path) -> None:
    """Let the zip say that its largest member has 300 bytes."""
    data = path.read_bytes()
    path.write_bytes(data.replace((64 << 20).to_bytes(4, "little"), (300).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda path: None,
            "files/p10/p10000001/s50000001.txt would unpack to 67,108,864 bytes, and a report has at most 4,194,304",
        ),
        (_understate_the_size, "cannot unpack files/p10/p10000001/s50000001.txt"),
    ],
)
def test_a_report_in_the_zip_that_would_fill_the_memory_is_refused(tmp_path: Path, change, reason: str):
    with zipfile.ZipFile(tmp_path / "reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/p10/p10000001/s50000001.txt", bytes(64 << 20))
    change(tmp_path / "reports.zip")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"reports.zip: {reason}"):
            _texts(open_reports(tmp_path / "reports.zip"), 10000001)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_pipes_and_huge_files_are_refused(tmp_path: Path):
    report = tmp_path / "s50000001.txt"
    report.touch()
    os.truncate(report, 1 << 40)
    with pytest.raises(UserError, match="s50000001.txt: 1,099,511,627,776 bytes are more than the 4,194,304"):
        read_texts(PatientReports(10000001, str(tmp_path)))
    report.unlink()
    os.mkfifo(report)
    with pytest.raises(UserError, match="s50000001.txt: a named pipe"):
        read_texts(PatientReports(10000001, str(tmp_path)))
    with pytest.raises(UserError, match="s50000001.txt: a named pipe"):
        open_reports(report)


def test_a_truncated_zip_is_the_users_error(two_patients: Tree):
    path = two_patients.write(zip_root="files/") / "reports.zip"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="neither a folder nor a complete zip"):
        open_reports(path)


def test_wrong_paths_are_reported_with_what_was_found(tree: Tree, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folders p10 to p19 .* found nothing; give --reports"):
        open_reports(tmp_path / "empty")
    with pytest.raises(UserError, match="no such folder or zip"):
        open_reports(tmp_path / "none")
    tree.reports = {"s50000001.txt": b"x"}
    with pytest.raises(UserError, match="no reports of the form .* found flat/s50000001.txt"):
        open_reports(tree.write(zip_root="flat/") / "reports.zip")


def test_a_report_twice_in_a_zip_is_an_error(two_patients: Tree):
    two_patients.reports["again/p10/p10000001/s50000001.txt"] = b"x"
    with pytest.raises(UserError, match="contains study 50000001 twice"):
        open_reports(two_patients.write(zip_root="files/") / "reports.zip")


def test_files_in_the_place_of_folders_hold_no_report(tmp_path: Path):
    (tmp_path / "p10").mkdir()
    (tmp_path / "p10" / "p10000001").touch()
    (tmp_path / "p11").touch()
    source = open_reports(tmp_path)
    assert _texts(source, 10000001) == {10000001: {}}
    assert source.count_others([]) == 0

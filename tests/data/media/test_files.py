"""Tests of the reasons for which a file is refused before it is opened."""

import os
from pathlib import Path

import pytest

from qwenvl.data.media.files import file_flaw, max_file_bytes


def test_a_regular_file_within_its_limit_has_no_flaw(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    assert file_flaw(str(path), "image file") is None
    assert file_flaw(str(path), "image file", max_bytes=5) is None


def test_a_link_to_a_regular_file_has_no_flaw(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "link.png").symlink_to("a.png")
    assert file_flaw(str(tmp_path / "link.png"), "image file") is None


def test_one_byte_over_the_limit_is_named_with_both_numbers(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"1" * 1234)
    flaw = file_flaw(str(tmp_path / "a.png"), "image file", max_bytes=1233)
    assert flaw == "1,234 bytes are more than the 1,233 that one image file may have; replace it"


def test_an_empty_file_is_refused_unless_it_is_allowed(tmp_path: Path):
    (tmp_path / "a.txt").touch()
    assert file_flaw(str(tmp_path / "a.txt"), "report") == "the report is empty (0 bytes); replace it"
    assert file_flaw(str(tmp_path / "a.txt"), "report", may_be_empty=True) is None


def test_the_expected_kind_is_named_and_the_path_is_not(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    flaws = [file_flaw(str(tmp_path / name), "video file") for name in (".", "pipe", "missing")]
    assert flaws == [
        "a folder, expected one video file; correct the path",
        "a named pipe (FIFO), expected one video file; correct the path",
        "no such video file; correct the path",
    ]


def test_a_file_used_as_a_folder_does_not_exist(tmp_path: Path):
    (tmp_path / "a").touch()
    assert file_flaw(str(tmp_path / "a" / "b.png"), "image file") == "no such image file; correct the path"


def test_a_folder_without_permission_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    assert "(Permission denied); correct the path or its permissions" in file_flaw(str(tmp_path), "image file")


def test_the_largest_file_holds_sixteen_bits_of_four_channels_and_metadata():
    assert max_file_bytes(0) == 2**24
    assert max_file_bytes(1000) - max_file_bytes(0) == 8 * 1000

"""Tests of refusing input files that cannot be read."""

import os
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.input_files import check_input_file


def test_regular_files_within_the_limit_pass(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    check_input_file(tmp_path / "a", "table", max_bytes=5)
    (tmp_path / "empty").touch()
    check_input_file(str(tmp_path / "empty"), "table", may_be_empty=True)


def test_other_paths_are_reported_with_path_and_kind(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, limit, message in [
        ("none", None, "none: no such table"),
        ("empty", None, "empty: the table is empty"),
        ("a", 4, "a: 5 bytes are more than the 4"),
        ("pipe", None, "pipe: a named pipe"),
        (".", None, "a folder, expected one table"),
    ]:
        with pytest.raises(UserError, match=message):
            check_input_file(tmp_path / name, "table", limit)

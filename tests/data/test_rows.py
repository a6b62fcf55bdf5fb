"""Tests of choosing the reader of an annotation file by its name."""

import json
from pathlib import Path

import pytest

from qwenvl.data.rows import JSON_SUFFIXES, stream_rows
from qwenvl.errors import UserError

VALUES = [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("suffix", [suffix for suffix in JSON_SUFFIXES if not suffix.endswith(".gz")])
def test_json_files_are_read_as_json(tmp_path: Path, suffix: str):
    path = tmp_path / f"train{suffix}"
    path.write_text(json.dumps(VALUES))
    assert [row.value for row in stream_rows(str(path), pytest.fail)] == VALUES


def test_rows_are_read_lazily_and_bad_ones_are_reported_where_they_occur(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"a": 1}\n{broken\n{"a": 3}\n')
    reported: list[str] = []
    rows = stream_rows(str(path), lambda location, reason: reported.append(location))
    assert next(rows).location == "line 1" and reported == []
    assert next(rows).location == "line 3" and reported == ["line 2"]


def test_a_missing_file_is_the_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="none.json: no such annotation file") as error:
        list(stream_rows(str(tmp_path / "none.json"), pytest.fail))
    assert error.value.path == str(tmp_path / "none.json")

"""Tests of the files that a converter writes."""

import json
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.split_files import SplitFiles

NAMES = ["stats.json", "x_dropped.csv", "x_test.json", "x_train.json", "x_valid.json"]


def test_records_dropped_studies_and_counts_are_written_together(tmp_path: Path):
    with SplitFiles(tmp_path / "out", "x", ["subject", "study"], overwrite=False) as output:
        for number in range(2):
            output.write("train", json.dumps({"id": number}))
        output.write("validate", "7")
        output.drop(1, 2, "no report, none")
        output.drop(1, 3, ValueError("no image"))
        output.finish(5, {"repeated rows": 0, "missing image files": 4})
        assert not {path.name for path in (tmp_path / "out").iterdir()} & set(NAMES)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert json.loads((out / "x_train.json").read_text()) == [{"id": 0}, {"id": 1}]
    assert json.loads((out / "x_valid.json").read_text()) == [7]
    assert json.loads((out / "x_test.json").read_text()) == []
    dropped = 'subject,study,reason\n1,2,"no report, none"\n1,3,no image\n'
    assert (out / "x_dropped.csv").read_text() == dropped
    assert json.loads((out / "stats.json").read_text()) == {
        "studies": 5,
        "records": {"train": 2, "validate": 1, "test": 0},
        "dropped": {"no report, none": 1, "no image": 1},
        "counts": {"repeated rows": 0, "missing image files": 4},
    }
    assert output.summary() == [
        ("studies read", 5),
        ("train records", 2),
        ("validate records", 1),
        ("test records", 0),
        ("dropped: no report, none", 1),
        ("dropped: no image", 1),
        ("missing image files", 4),
    ]


def test_without_a_record_nothing_is_written_and_the_reasons_are_given(tmp_path: Path):
    with (
        pytest.raises(UserError, match="nothing was written: 2 x no report file, 1 x no frontal image"),
        SplitFiles(tmp_path / "out", "x", ["study"], overwrite=False) as output,
    ):
        output.drop(1, "no report file")
        output.drop(2, "no frontal image")
        output.drop(3, "no report file")
        output.finish(3, {})
    assert list((tmp_path / "out").iterdir()) == []
    with (
        pytest.raises(UserError, match="no study found"),
        SplitFiles(tmp_path / "out", "x", ["study"], overwrite=False) as output,
    ):
        output.finish(0, {})


def test_inputs_and_earlier_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "x_train.json").write_text("[]")
    with pytest.raises(UserError, match="already holds x_train.json"):
        SplitFiles(tmp_path, "x", [], overwrite=False)
    with pytest.raises(UserError, match="x_train.json is what this command reads"):
        SplitFiles(tmp_path, "x", [], overwrite=True, inputs=[None, tmp_path / "x_train.json"])

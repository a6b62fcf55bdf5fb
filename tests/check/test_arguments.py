"""Tests of the command line of the pre-flight check: its help and its refusals."""

import re
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.check_data import main


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--out", "x", "--decode", "half"], "invalid choice"),
        (["--dataset_use", "x"], "required: --out"),
        (["--out", "x", "--no_such_flag"], "is no flag of this program"),
        (["--out", "x", "--processes", "0"], "--processes 0: give 1 or more"),
        (["--out", "x", "--model_max_length", "0"], "--model_max_length 0"),
        (["--out", "x", "--deepspeed", "nowhere.json"], "--deepspeed nowhere.json"),
        (["--out", "x", "--vision_layer", "-2"], "--vision_layer -2 is for a custom encoder"),
        (["--out", "x"], "no dataset named"),
    ],
)
def test_mistakes_on_the_command_line_are_told(flags: list[str], reason: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(reason)):
        main(flags)
    assert list(tmp_path.iterdir()) == []


def test_help_tells_the_own_options_first_and_those_of_training_by_name(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.count("\n") < 120
    own, _, training = text.partition("flags of training, which")
    assert "--same_picture" in own and "Two files are the same picture by their bytes" in " ".join(own.split())
    assert "--learning_rate" in training and "--max_image_megapixels" in training and "--same_picture" not in training

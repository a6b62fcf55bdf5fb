"""Tests of the command line of the pre-flight check: its help, its refusals, and what reaches the check."""

import re
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.check_data import main
from qwenvl.tools.check_flags import parse_check_arguments
from qwenvl.train.memory import Sharding

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--out", "x", "--decode", "half"], "invalid choice"),
        (["--dataset_use", "x"], "required: --out"),
        (["--out", "x", "--no_such_flag"], "is not a flag of this program"),
        (["--out", "x", "--processes", "0"], "--processes 0: give 1 or more"),
        (["--out", "x", "--model_max_length", "0"], "--model_max_length 0"),
        (["--out", "x", "--deepspeed", "nowhere.json"], "--deepspeed nowhere.json"),
        (["--out", "x", "--vision_layer", "-2"], "--vision_layer -2 is for a custom encoder"),
        (["--out", "x"], "give --dataset_use"),
    ],
)
def test_mistakes_on_the_command_line_are_reported(flags: list[str], reason: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(reason)):
        main(flags)
    assert list(tmp_path.iterdir()) == []


def test_help_describes_the_own_options_and_names_the_command_for_those_of_training(
    capsys: pytest.CaptureFixture,
):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    text = " ".join(text.split())
    assert "--same_picture" in text and "Compare images by the bytes of their files" in text
    assert "`python -m qwenvl.train.train_qwen --help` describes them" in text


def test_flags_of_the_device_do_not_reach_the_check_but_sharding_does():
    config = str(REPOSITORY / "scripts/zero3.json")
    given = ["--out", "x", "--deepspeed", config, "--processes", "4", "--bf16", "True", "--report_to", "wandb"]
    flags = parse_check_arguments([*given, "--attn_implementation", "flash_attention_2"])
    assert flags.sharding == Sharding(4, 3)
    assert (flags.training.use_cpu, flags.training.report_to) == (True, [])
    assert flags.model.attn_implementation == "sdpa"

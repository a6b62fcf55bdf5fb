"""Tests of how a program ends for a user's mistake: one line, exit code 2, and the line last where torchrun reports."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl import errors
from qwenvl.data.media.images import ImageError
from qwenvl.errors import LAUNCHER_VARIABLE, UserError, exit_on_user_error

REPOSITORY = Path(__file__).resolve().parents[1]


def end_with(error: Exception) -> None:
    with exit_on_user_error():
        raise error


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        end_with(UserError("no such file"))
    assert capsys.readouterr().err == "error: no such file\n"


def test_an_error_about_a_file_names_it_before_the_reason_and_keeps_both_when_pickled():
    for error in (UserError("no such file", path=Path("a/b.png")), ImageError("no such file", path="a/b.png")):
        for same in (error, pickle.loads(pickle.dumps(error))):
            assert (type(same), same.path, same.reason) == (type(error), "a/b.png", "no such file")
            assert str(same) == "a/b.png: no such file"


def test_an_error_about_no_file_is_its_reason_alone():
    error = UserError("--lora_r 0: give 1 or more")
    assert (error.path, str(error)) == (None, error.reason)


def test_a_report_that_names_the_file_gets_the_reason_alone_and_any_other_file_with_it():
    error = UserError("no such file", path="a.png")
    assert error.reason_for("a.png") == error.reason_for(Path("a.png")) == "no such file"
    assert error.reason_for("frames.json") == "a.png: no such file"
    assert UserError("lost").reason_for("a.png") == "lost"


def test_plain_torchrun_gets_the_line_for_its_report_and_our_launcher_does_not_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    report = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    monkeypatch.setenv(LAUNCHER_VARIABLE, "1")
    with pytest.raises(SystemExit):
        end_with(UserError("no such file"))
    assert not report.exists()
    capsys.readouterr()

    monkeypatch.delenv(LAUNCHER_VARIABLE)
    with pytest.raises(SystemExit):
        end_with(UserError("no such file"))
    assert json.loads(report.read_text())["message"]["extraInfo"]["py_callstack"] == "error: no such file"
    assert capsys.readouterr().err == ""  # told once


def test_plain_torchrun_prints_a_users_line_last_and_once(tmp_path: Path):
    script = tmp_path / "mistake.py"
    script.write_text(
        "from qwenvl.errors import *\nwith exit_on_user_error():\n    raise UserError('no such file')\n", "utf-8"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", str(script)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    errors = subprocess.run(command, env=environment, capture_output=True, text=True).stderr
    assert errors.count("error: no such file") == 1
    assert errors.rstrip("=\n").endswith("error: no such file")


@pytest.mark.parametrize(("rank", "delays"), [(None, []), ("0", []), ("3", [errors._SECONDS_FOR_THE_FIRST_PROCESS])])
def test_only_the_first_process_of_a_run_writes_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, delays: list[int]
):
    slept = []
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert capsys.readouterr().err == ""  # the line comes after the delay

    monkeypatch.setattr(errors.time, "sleep", sleep)
    with pytest.raises(SystemExit, match="2"):
        end_with(UserError("no such file"))
    assert slept == delays
    assert capsys.readouterr().err == "error: no such file\n"


def test_a_missing_package_is_one_line_and_a_missing_module_of_ours_a_defect(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        end_with(ModuleNotFoundError("No module named 'peft.x'", name="peft.x"))
    line = capsys.readouterr().err
    assert line.startswith(f"error: peft is not installed in {sys.executable}; ")
    assert line.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):
        end_with(ModuleNotFoundError("No module named 'qwenvl.x'", name="qwenvl.x"))


@pytest.mark.parametrize(
    "command",
    [
        ["tools/check_data.py"],
        ["tools/prepare_images.py"],
        ["-m", "qwenvl.vision"],
        ["-m", "qwenvl.train.launch"],
        ["qwenvl/train/train_qwen.py"],
        ["demo/quickstart.py"],
    ],
    ids=" ".join,
)
def test_outside_its_environment_a_program_says_how_to_activate_it(command: list[str]):
    # -S leaves the site-packages out, as a Python has it that nothing was installed into.
    answer = subprocess.run([sys.executable, "-S", *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert " is not installed in " in answer.stderr
    assert "source " in answer.stderr or "scripts/quickstart.sh" in answer.stderr


def test_the_synthetic_archive_outside_of_the_environment_is_one_line():
    command = [sys.executable, "-S", "-m", "qwenvl.tools.synthetic_mimic"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: PIL is not installed in ")
    assert ended.stderr.count("\n") == 1

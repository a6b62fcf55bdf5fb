"""Tests of the quick start: its functions, and whole runs, whose score and control must be as expected."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import PreTrainedModel, ProcessorMixin

from demo import quickstart
from demo.quickstart import (
    Result,
    choose_examples,
    exact_match,
    main,
    prepare_folder,
    rows,
    series,
    shuffled,
    write_report,
)
from qwenvl.data.annotations import Record, Turn
from qwenvl.errors import UserError

GOOD = Result(score=0.95, control=0.1, samples_per_second=200, peak_memory=1, train_seconds=60, device="CPU")
HISTORY = [
    {"step": 10, "loss": 2.0, "samples_per_second": 100.0, "peak_memory_gib": 0.5},
    {"step": 10, "eval_loss": 1.5},
    {"step": 20, "loss": 1.0, "samples_per_second": 300.0, "peak_memory_gib": 0.7},
    {"step": 20, "train_runtime": 9.0},
]


def record(answer: str) -> Record:
    return Record("digits.json", 0, (Turn("user", "<image>\nWhich?"), Turn("assistant", answer)), ("a.png",), ())


def test_shuffling_moves_every_path_and_loses_none():
    paths = [f"{index}.png" for index in range(297)]
    moved = shuffled(paths)
    assert sorted(moved) == sorted(paths)
    assert all(before != after for before, after in zip(paths, moved, strict=True))


def test_exact_match_counts_only_equal_answers():
    assert exact_match(["1", "12", "", "4."], [record("1"), record("1"), record("3"), record("4")]) == 0.25


@pytest.mark.parametrize(
    ("changes", "passed"),
    [({}, True), ({"score": 0.89}, False), ({"control": 0.21}, False), ({"score": 0.90, "control": 0.20}, True)],
)
def test_score_and_control_both_decide(changes: dict, passed: bool):
    assert Result(**(GOOD.__dict__ | changes)).passed == passed


@pytest.mark.parametrize(("score", "code"), [(0.95, 0), (0.5, 1)])
def test_the_exit_code_is_0_only_if_the_result_is_as_expected(
    score: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        quickstart, "run_quickstart", lambda folder, encoder: Result(**(GOOD.__dict__ | {"score": score}))
    )
    assert main([str(tmp_path)]) == code


def test_report_shows_table_curve_and_verdict(tmp_path: Path):
    table = rows(GOOD, tmp_path / "trained")
    write_report(tmp_path, table, passed=False)
    report = (tmp_path / "report.md").read_text()
    assert "NOT as expected" in report
    assert "| held-out scans read correctly | 0.950 | >= 0.90 |" in report
    assert "loss_curve.png" in report


def test_report_shows_ten_questions_with_image_answer_and_truth_wrong_ones_too(tmp_path: Path):
    scan = tmp_path / "digits" / "7.png"
    turns = (Turn("user", "<image>\nWhich?"), Turn("assistant", "7"))
    records = [Record("digits.json", row, turns, (str(scan),)) for row in range(31)]
    write_report(tmp_path, rows(GOOD, tmp_path), True, choose_examples(["7"] * 30 + ["1"], records))
    shown = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| ![")]
    assert shown == ["| ![scan](digits/7.png) | Which? | 7 | 7 |"] * 9 + ["| ![scan](digits/7.png) | Which? | 1 | 7 |"]


def test_loss_curve_is_drawn_from_the_logged_steps(tmp_path: Path):
    assert series(HISTORY, "loss") == ([10, 20], [2.0, 1.0])
    quickstart.draw_curve(HISTORY, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_quick_start_is_replaced_and_any_other_folder_is_left_alone(tmp_path: Path):
    ours = prepare_folder(tmp_path / "new" / "quickstart")
    (ours / "old").touch()
    assert [path.name for path in prepare_folder(ours).iterdir()] == [quickstart.MARKER]
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_settings_of_the_users_shell_do_not_reach_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "scripts" / "train.sh"
    script.parent.mkdir()
    table = (quickstart.REPOSITORY / "scripts/train.sh").read_text().split("SETTINGS='")[1].split("'")[0]
    show = f'echo "$DATASETS $LORA_R $NNODES ${{LORA_TARGET_MODULES-}}" > {tmp_path}/seen'
    script.write_text(f"SETTINGS='{table}'\n{show}\nexit 3\n")
    for name, value in (("DATASETS", "theirs"), ("LORA_R", "64"), ("NNODES", "4"), ("LORA_TARGET_MODULES", "all")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(quickstart, "REPOSITORY", tmp_path)
    digits = quickstart.DigitFiles(Path("train.json"), Path("held.json"))
    with pytest.raises(SystemExit, match="3"):
        quickstart.run_training(tmp_path, digits, tmp_path)
    assert (tmp_path / "seen").read_text() == "train.json 8 1 \n"


def test_ctrl_c_ends_the_training_and_the_quick_start_with_130_and_no_traceback(tmp_path: Path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/train.sh").write_text("trap 'exit 130' INT\ntouch ready\nwhile true; do sleep 0.05; done\n")
    code = f"""
from pathlib import Path
from demo import quickstart
quickstart.REPOSITORY = Path({str(tmp_path)!r})
quickstart.run_training(Path("model"), quickstart.DigitFiles(Path("train.json"), Path("held.json")), Path("out"))
"""
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(quickstart.REPOSITORY)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "Traceback" not in errors


def answer_right_but_blind(
    model: PreTrainedModel, processor: ProcessorMixin, records: list[Record], paths: list[str]
) -> list[str]:
    return [record.turns[-1].text for record in records]


def test_the_quick_start_reads_unseen_digits_and_only_from_the_image(
    tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    assert main([str(folder)]) == 0
    table = capfd.readouterr().out
    assert "held-out scans read correctly" in table
    assert (folder / "loss_curve.png").stat().st_size > 5000
    report = (folder / "report.md").read_text()
    assert "as expected" in report
    assert all((folder / image).is_file() for image in re.findall(r"!\[scan\]\((.+?)\)", report))
    assert report.count("![scan]") == 10
    result = quickstart.evaluate(folder / "trained", folder / "digits/digits_held_out.json")
    assert result.score >= quickstart.LOWEST_SCORE
    assert result.control <= quickstart.HIGHEST_CONTROL
    assert result.train_seconds < 240 or os.getloadavg()[0] > 2, "4 minutes on two free cores are the limit"
    monkeypatch.setattr(quickstart, "generate_answers", answer_right_but_blind)
    assert not quickstart.evaluate(folder / "trained", folder / "digits/digits_held_out.json").passed
    shutil.rmtree(folder)


def test_the_digits_are_read_through_a_swapped_encoder_too(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("quickstart") / "swapped"
    assert main([str(folder), "--encoder", "rad_dino"]) == 0
    config = json.loads((folder / "trained/config.json").read_text())
    assert config["vision_config"]["encoder"] == "rad_dino"
    result = quickstart.evaluate(folder / "trained", folder / "digits/digits_held_out.json")
    assert result.score >= 0.85
    assert result.control <= 0.20
    shutil.rmtree(folder)

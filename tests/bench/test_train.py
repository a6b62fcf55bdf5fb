"""Tests of what the training benchmark computes from the log of a run."""

import json
import subprocess
from pathlib import Path

import pytest

from qwenvl.bench import train
from qwenvl.errors import UserError


def _step(number: int, loss: float = 1.0) -> dict[str, float]:
    return {
        "step": number,
        "loss": loss,
        "samples_per_second": 10.0 * number,
        "tokens_per_second": 100.0 * number,
        "data_wait_share": 0.1 * number,
        "peak_memory_gib": 9.0 - number,
    }


def test_only_the_log_entries_of_steps_are_read(tmp_path: Path) -> None:
    history = [_step(1), {"step": 1, "eval_loss": 2.0}, _step(2), {"step": 2, "train_runtime": 3.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert train.read_steps(tmp_path, 1) == [_step(1), _step(2)]


@pytest.mark.parametrize("is_written", [True, False])
def test_a_run_with_too_few_steps_is_refused_with_the_flag_to_raise(tmp_path: Path, is_written: bool) -> None:
    if is_written:
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [_step(1)]}))
    with pytest.raises(UserError, match=f"{int(is_written)} steps were trained.*first 3.*--max_steps"):
        train.read_steps(tmp_path, 3)


def test_rates_are_medians_without_the_warmup_and_the_peak_memory_includes_it() -> None:
    summary = train.summarize([_step(number, loss=number) for number in range(1, 9)], warmup_steps=3)
    assert summary["samples_per_second"] == 60 and summary["tokens_per_second"] == 600
    assert summary["data_wait_share"] == pytest.approx(0.6)
    assert summary["peak_memory_gib"] == 8 and summary["steps"] == 8
    assert (summary["loss_of_first_5_steps"], summary["loss_of_last_5_steps"]) == (3, 6)


def test_fewer_than_five_steps_are_averaged_without_repetition() -> None:
    summary = train.summarize([_step(1, loss=4.0), _step(2, loss=2.0)], warmup_steps=0)
    assert summary["loss_of_first_2_steps"] == summary["loss_of_last_2_steps"] == 3


def test_a_training_that_fails_in_its_processes_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str]) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(train.subprocess, "run", run)
    with pytest.raises(UserError, match="the training failed"):
        train.train_in_processes(["--max_steps", "2"], 4)
    assert "--nproc_per_node=4" in commands[0] and commands[0][-2:] == ["--max_steps", "2"]

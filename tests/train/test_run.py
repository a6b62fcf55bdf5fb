"""Tests of the steps around the training loop, on a trainer that records what is asked of it."""

import json
import logging
import multiprocessing
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from qwenvl.checkpoint.manifest import find_fault
from qwenvl.train import run as run_module
from qwenvl.train.callbacks import EvaluationStoppedError, StopOnSigterm
from qwenvl.train.run import end_data_workers, evaluate_last_step, publish, run, run_folder


class RecordingTrainer:
    """A trainer that notes the calls; training it takes one step."""

    def __init__(self, output_dir: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(output_dir / ".incomplete"), dataloader_num_workers=0)
        self.state = TrainerState(global_step=4, max_steps=4)
        self.eval_dataset: list | None = [1]
        self.calls: list[str] = []
        self.stop: StopOnSigterm | None = None

    def is_world_process_zero(self) -> bool:
        return True

    def add_callback(self, callback: StopOnSigterm) -> None:
        self.stop = callback

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.calls.append("train")

    def evaluate(self) -> None:
        self.calls.append("evaluate")
        self.state.log_history.append({"step": 4, "eval_loss": 0.5})

    def save_model(self, folder: str) -> None:
        self.calls.append("save")
        Path(folder).mkdir(parents=True)
        (Path(folder) / "config.json").write_text("{}")
        (Path(folder) / "run_arguments.json").write_text("{}")


@pytest.fixture
def trainer(tmp_path: Path) -> RecordingTrainer:
    return RecordingTrainer(tmp_path)


@pytest.mark.parametrize(("run_name", "end"), [(None, ""), ("lora 8/x-ray", "-lora_8_x-ray"), ("../up", "-.._up")])
def test_the_folder_of_tensorboard_bears_the_name_of_the_run(run_name: str | None, end: str) -> None:
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}{re.escape(end)}", run_folder(run_name))


def test_a_published_model_is_whole_and_has_the_state_of_its_run(trainer: RecordingTrainer, tmp_path: Path) -> None:
    publish(trainer, str(tmp_path))

    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 4
    assert "config.json" in {path.name for path in tmp_path.iterdir()}
    assert find_fault(tmp_path, for_resume=False) is None
    assert not (tmp_path / ".incomplete" / "final").exists()


def test_the_last_step_is_evaluated_once_and_recorded(trainer: RecordingTrainer, tmp_path: Path) -> None:
    publish(trainer, str(tmp_path))

    evaluate_last_step(trainer, str(tmp_path))
    evaluate_last_step(trainer, str(tmp_path))

    assert trainer.calls == ["save", "evaluate"]
    assert json.loads((tmp_path / "trainer_state.json").read_text())["log_history"] == [{"step": 4, "eval_loss": 0.5}]


def test_without_evaluation_data_nothing_is_evaluated(trainer: RecordingTrainer, tmp_path: Path) -> None:
    trainer.eval_dataset = None

    evaluate_last_step(trainer, str(tmp_path))

    assert trainer.calls == []


def test_a_run_trains_publishes_and_evaluates_in_this_order(trainer: RecordingTrainer, tmp_path: Path) -> None:
    run(trainer, str(tmp_path), None)

    assert trainer.calls == ["train", "save", "evaluate"]
    assert trainer.stop.is_published


def test_a_stopped_run_publishes_nothing_and_logs_how_to_continue(
    trainer: RecordingTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(RecordingTrainer, "train", lambda self, **kwargs: setattr(self.stop, "stopped", True))

    with caplog.at_level(logging.INFO, logger="qwenvl"):
        run(trainer, str(tmp_path), None)

    assert trainer.calls == []
    assert "stopped by SIGTERM after step 4; the checkpoint is saved: continue with" in caplog.text


def test_a_signal_in_the_last_evaluation_ends_the_run_well(
    trainer: RecordingTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(self: RecordingTrainer) -> None:
        raise EvaluationStoppedError

    monkeypatch.setattr(RecordingTrainer, "evaluate", stopped)

    with caplog.at_level(logging.INFO, logger="qwenvl"):
        run(trainer, str(tmp_path), None)

    assert (tmp_path / "config.json").is_file()
    assert "the last step is trained and saved, but not evaluated" in caplog.text


def test_a_failed_run_ends_its_data_workers_and_keeps_its_error(
    trainer: RecordingTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: RecordingTrainer, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(RecordingTrainer, "train", failing)
    monkeypatch.setattr(run_module, "end_data_workers", lambda: trainer.calls.append("end workers"))

    with pytest.raises(RuntimeError, match="out of memory"):
        run(trainer, str(tmp_path), None)

    assert trainer.calls == ["end workers"]
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def worker() -> Iterator[multiprocessing.Process]:
    """Return a process that ignores SIGTERM, as data workers do."""
    process = multiprocessing.get_context("fork").Process(target=ignore_sigterm, daemon=True)
    process.start()
    yield process
    process.kill()


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def test_data_workers_that_ignore_sigterm_are_killed(worker: multiprocessing.Process) -> None:
    end_data_workers()

    worker.join(timeout=10)
    assert worker.exitcode == -signal.SIGKILL

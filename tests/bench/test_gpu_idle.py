"""Tests of the measured idle time of the GPU: what the spans of its work leave, and that the run ends with it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from qwenvl.bench import gpu_idle
from qwenvl.train import train_qwen
from tests.train.conftest import RECIPE, command_line, conversation, write_records


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 10)], 0.0),
        ([(30, 40), (0, 10)], 0.5),
        ([(0, 20), (5, 10), (15, 30), (40, 50)], 0.2),  # overlapping streams
        ([], 1.0),
    ],
)
def test_the_idle_share_is_the_time_that_no_span_covers(spans: list[tuple[float, float]], share: float) -> None:
    assert gpu_idle.idle_share(spans) == pytest.approx(share)


def event(start: float, end: float, *, on_gpu: bool = True, is_user_annotation: bool = False) -> SimpleNamespace:
    device = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(device_type=device, time_range=span, is_user_annotation=is_user_annotation)


class FakeProfile:
    """Records nothing and reports two kernels, a copy in the gap, and what is no work of the GPU."""

    def __init__(self, activities: list) -> None:
        self.is_running = False

    def start(self) -> None:
        self.is_running = True

    def stop(self) -> None:
        assert self.is_running
        self.is_running = False

    def events(self) -> list[SimpleNamespace]:
        kernels = [event(0, 40), event(60, 100), event(45, 55)]
        return [*kernels, event(0, 1000, on_gpu=False), event(0, 100, is_user_annotation=True)]


def test_the_callback_logs_the_idle_share_of_its_steps_and_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_idle, "profile", FakeProfile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    callback = gpu_idle.MeasureGpuIdle(first_step=2, num_steps=3)
    state, control = TrainerState(), TrainerControl()
    for step in range(1, 6):
        assert not control.should_training_stop
        state.global_step = step
        callback.on_step_end(TrainingArguments(), state, control)
    assert control.should_training_stop
    assert state.log_history == [{gpu_idle.IDLE_SHARE: pytest.approx(0.1), "step": 5}]


def test_a_training_ends_after_its_profiled_steps(
    standin: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_idle, "profile", FakeProfile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    records = [conversation("<image>\nWhat is shown?", f"Image {i}.", image="red.png") for i in range(4)]
    flags = {"model_name_or_path": standin, "dataset_use": write_records(media / "idle_records.json", records)}
    flags = RECIPE | flags | {"output_dir": tmp_path / "run", "max_steps": 4, "save_strategy": "no"}
    train_qwen.train(command_line(**flags), [gpu_idle.MeasureGpuIdle(first_step=1, num_steps=1)])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    shares = [entry[gpu_idle.IDLE_SHARE] for entry in state["log_history"] if gpu_idle.IDLE_SHARE in entry]
    assert shares == [pytest.approx(0.1)]

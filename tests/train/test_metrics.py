"""Tests of the throughput meter, with a clock of the test's own."""

from types import SimpleNamespace

import pytest
import torch

from qwenvl.checkpoint.disk import CheckpointDisk
from qwenvl.data.collators import BatchMeta
from qwenvl.train import metrics
from qwenvl.train.metrics import ThroughputMeter
from qwenvl.train.trainer import QwenVLTrainer

META = BatchMeta(num_samples=2, num_tokens=30, num_padding=10)


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics.time, "perf_counter", clock)
    return clock


def test_a_pause_does_not_count_as_training(clock: Clock) -> None:
    meter = ThroughputMeter()
    meter.count([META], waited=1.0)
    clock.now += 3.0
    paused_at = meter.pause()
    clock.now += 1000.0
    meter.resume(paused_at)
    clock.now += 1.0

    summary = meter.summary(torch.device("cpu"))

    assert summary["tokens_per_second"] == pytest.approx(30 / 4)
    assert summary["samples_per_second"] == pytest.approx(2 / 4)
    assert summary["data_wait_share"] == pytest.approx(1 / 4)
    assert summary["padding_share"] == pytest.approx(10 / 40)


def test_writing_a_model_does_not_count_as_training(clock: Clock) -> None:
    class SlowWriter(QwenVLTrainer):
        def __init__(self) -> None:
            self.throughput = ThroughputMeter()
            self.args = SimpleNamespace(output_dir="out", should_save=False)
            self.disk = CheckpointDisk("out")
            self.model = SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace()))

        def _write_model(self, folder: str, internal_call: bool) -> None:
            clock.now += 1000.0

    trainer = SlowWriter()
    trainer.throughput.count([META], waited=0.0)
    clock.now += 2.0
    trainer.save_model()

    assert trainer.throughput.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 2)


def test_a_summary_starts_the_next_interval_and_keeps_the_total(clock: Clock) -> None:
    meter = ThroughputMeter()
    for _ in range(2):
        meter.count([META], waited=0.0)
        clock.now += 2.0
        summary = meter.summary(torch.device("cpu"))

    assert summary["tokens_per_second"] == pytest.approx(30 / 2)
    assert meter.total_samples == 4

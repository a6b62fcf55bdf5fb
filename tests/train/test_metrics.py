"""Tests of the throughput meter, with a clock of the test's own."""

import pytest
import torch

from qwenvl.data.collators import BatchMeta
from qwenvl.train import metrics
from qwenvl.train.metrics import ThroughputMeter

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
    with meter.paused():
        clock.now += 1000.0
    clock.now += 1.0

    summary = meter.summary(torch.device("cpu"))

    assert summary["tokens_per_second"] == pytest.approx(30 / 4)
    assert summary["samples_per_second"] == pytest.approx(2 / 4)
    assert summary["data_wait_share"] == pytest.approx(1 / 4)
    assert summary["padding_share"] == pytest.approx(10 / 40)


def test_a_pause_inside_a_pause_counts_once(clock: Clock) -> None:
    meter = ThroughputMeter()
    meter.count([META], waited=0.0)
    clock.now += 2.0
    with meter.paused():
        clock.now += 500.0
        with meter.paused():
            clock.now += 500.0
    clock.now += 1.0

    assert meter.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 3)


def test_a_summary_in_a_pause_ends_its_interval_where_the_pause_began(clock: Clock) -> None:
    meter = ThroughputMeter()
    meter.count([META], waited=0.0)
    clock.now += 2.0
    with meter.paused():
        clock.now += 500.0
        assert meter.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 2)
        clock.now += 500.0
    meter.count([META], waited=0.0)
    clock.now += 3.0

    assert meter.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 3)


def test_a_pause_ends_with_an_error_inside(clock: Clock) -> None:
    meter = ThroughputMeter()
    with pytest.raises(RuntimeError), meter.paused():
        clock.now += 500.0
        raise RuntimeError
    meter.count([META], waited=0.0)
    clock.now += 2.0

    assert meter.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 2)


def test_a_summary_starts_the_next_interval_and_keeps_the_total(clock: Clock) -> None:
    meter = ThroughputMeter()
    for _ in range(2):
        meter.count([META], waited=0.0)
        clock.now += 2.0
        summary = meter.summary(torch.device("cpu"))

    assert summary["tokens_per_second"] == pytest.approx(30 / 2)
    assert meter.total_samples == 4

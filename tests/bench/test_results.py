"""Tests of what is computed from an observed run: rates over all of its time, and whether it meets its aim."""

import pytest

from qwenvl.bench.observe import StopRule
from qwenvl.bench.results import Result, judge, loss_difference, summarize, timed_rates
from qwenvl.bench.rows import Aim, Row


def entry(samples: float, tokens: float, wait: float = 0.0, loss: float = 2.0) -> dict[str, float]:
    rates = {"samples_per_second": samples, "tokens_per_second": tokens, "data_wait_share": wait}
    return rates | {"peak_memory_gib": samples / 10, "loss": loss}


LOG = {1: entry(1, 500), 10: entry(10, 5000), 20: entry(30, 15000, 0.2), 30: entry(60, 24000, 0.1)}
TIMES = {1: 50.0, 10: 60.0, 20: 70.0, 30: 100.0}


def result(name: str = "row", gpus: int = 1, **values: object) -> Result:
    return Result(name, "recipe", {}, gpus, **values)


def test_rates_are_all_samples_by_all_seconds_after_the_warm_up() -> None:
    rates = timed_rates(LOG, TIMES, StopRule(0, warmup_steps=5))
    assert rates["samples_per_second"] == pytest.approx((30 * 10 + 60 * 30) / 40)
    assert rates["tokens_per_sample"] == pytest.approx((15000 * 10 + 24000 * 30) / (30 * 10 + 60 * 30))
    assert rates["data_wait_share"] == pytest.approx((0.2 * 10 + 0.1 * 30) / 40)
    assert rates["timed_seconds"] == 40


def test_nothing_is_timed_of_a_run_that_ends_in_its_warm_up() -> None:
    assert timed_rates(LOG, TIMES, StopRule(0, warmup_steps=30)) is None
    filled = result()
    assert "raise --minutes" in filled.fill_in(LOG, TIMES, StopRule(0, warmup_steps=30))
    assert filled.fill_in({}, {}, None) == "no step was trained"


def test_a_start_has_its_seconds_and_no_rate() -> None:
    filled = result()
    assert filled.fill_in(LOG, TIMES, None) is None
    assert filled.seconds_to_first_step == 50 and filled.samples_per_second is None
    assert filled.peak_gib == 6.0 and filled.losses[30] == 2.0


@pytest.mark.parametrize(
    ("aim", "values", "met"),
    [
        (Aim(samples_per_second=45), {"samples_per_second": 45.0}, {"samples_per_second": True}),
        (
            Aim(samples_per_second=42, peak_gib=24),
            {"samples_per_second": 50.0, "peak_gib": 24.1},
            {"samples_per_second": True, "peak_gib": False},
        ),
        (Aim(seconds_to_first_step=40), {"seconds_to_first_step": 41.0}, {"seconds_to_first_step": False}),
        (Aim(samples_per_second=45), {"status": "failed"}, {}),
        (Aim(of_row="absent", share_of_row=0.97), {"samples_per_second": 45.0}, {}),
    ],
)
def test_an_aim_is_judged_by_its_parts(aim: Aim, values: dict, met: dict) -> None:
    judged = result(**values)
    judge(judged, Row("row", "recipe", aim), {})
    assert judged.met == met


@pytest.mark.parametrize(("rate", "met"), [(97.0, True), (96.9, False)])
def test_two_gpus_are_compared_with_twice_the_rate_of_one(rate: float, met: bool) -> None:
    judged = result(gpus=2, samples_per_second=rate)
    row = Row("row", "recipe", Aim(of_row="one", share_of_row=0.97), gpus=2)
    judge(judged, row, {"one": result("one", samples_per_second=50.0)})
    assert judged.met == {"share_of_row": met}


def test_losses_are_compared_over_the_later_half_of_the_common_steps() -> None:
    ours, theirs = {1: 9.0, 10: 5.0, 20: 2.02, 30: 2.02, 40: 7.0}, {1: 1.0, 10: 1.0, 20: 2.0, 30: 2.0}
    assert loss_difference(ours, theirs) == pytest.approx(0.01)
    assert loss_difference(ours, {}) is None
    judged = result(losses=ours)
    row = Row("row", "recipe", Aim(of_row="bf16", loss_within=0.02))
    judge(judged, row, {"bf16": result("bf16", losses=theirs)})
    assert judged.met == {"loss_within": True}


def test_a_result_is_summarized_in_a_line() -> None:
    assert summarize(result(status="failed", problem="no memory")) == "failed: no memory"
    assert summarize(result(samples_per_second=51.0, met={"x": False})) == "samples/s 51, aim met: False"

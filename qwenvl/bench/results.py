"""Compute what a row of the suite reached from what was observed of its run, and whether that meets its aim."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwenvl.bench.observe import StopRule
from qwenvl.bench.rows import Row


@dataclass
class Result:
    """What a row reached; a row that was skipped or failed has the reason in `problem`.

    `command` is what a user would type, and `program` is what it ran: the same, but for a script.
    """

    name: str
    recipe: str
    aim: dict[str, Any]
    gpus: int
    status: str = "measured"
    problem: str | None = None
    command: list[str] = field(default_factory=list)
    program: list[str] = field(default_factory=list)
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    tokens_per_sample: float | None = None
    matmul_share: float | None = None
    gpu_idle_share: float | None = None
    data_wait_share: float | None = None
    peak_gib: float | None = None
    estimated_gib: float | None = None
    seconds_to_first_step: float | None = None
    timed_seconds: float | None = None
    losses: dict[int, float] = field(default_factory=dict)
    met: dict[str, bool] = field(default_factory=dict)

    def fill_in(
        self,
        log: Mapping[int, Mapping[str, float]],
        step_times: Mapping[int, float],
        warmup: StopRule | None,
    ) -> str | None:
        """Take over what a run has logged and when, without rates if there is no warm-up; return what is missing."""
        if not log or not step_times:
            return "no step was trained"
        self.seconds_to_first_step = min(step_times.values())
        self.peak_gib = max(entry["peak_memory_gib"] for entry in log.values())
        self.losses = {step: entry["loss"] for step, entry in log.items()}
        if warmup is None:
            return None
        rates = timed_rates(log, step_times, warmup)
        if rates is None:
            return "it ended before a step was timed; raise --minutes"
        for name, value in rates.items():
            setattr(self, name, value)
        return None


def timed_rates(
    log: Mapping[int, Mapping[str, float]], step_times: Mapping[int, float], warmup: StopRule
) -> dict[str, float] | None:
    """Return all samples and tokens by all seconds of the logged steps after the warm-up; None if there are none.

    Packs vary, so the mean of the logged rates is not the rate: each is weighted by the seconds that it is of.
    """
    steps = sorted(step for step in log if step in step_times)
    first = warmup.first_timed({step: step_times[step] for step in steps})
    totals = {"samples_per_second": 0.0, "tokens_per_second": 0.0, "data_wait_share": 0.0}
    seconds = 0.0
    for before, step in zip(steps, steps[1:], strict=False):
        if first is None or before < first:
            continue
        duration = step_times[step] - step_times[before]
        seconds += duration
        for name in totals:
            totals[name] += log[step][name] * duration
    if not seconds:
        return None
    rates = {name: total / seconds for name, total in totals.items()}
    rates["tokens_per_sample"] = totals["tokens_per_second"] / totals["samples_per_second"]
    return rates | {"timed_seconds": seconds}


def judge(result: Result, row: Row, others: Mapping[str, Result]) -> None:
    """Fill in which parts of the aim a row has met; a part that nothing was measured for is left out."""
    aim = row.aim
    if result.status != "measured":
        return
    if aim.samples_per_second is not None and result.samples_per_second is not None:
        result.met["samples_per_second"] = result.samples_per_second >= aim.samples_per_second
    if aim.peak_gib is not None and result.peak_gib is not None:
        result.met["peak_gib"] = result.peak_gib <= aim.peak_gib
    if aim.seconds_to_first_step is not None and result.seconds_to_first_step is not None:
        result.met["seconds_to_first_step"] = result.seconds_to_first_step <= aim.seconds_to_first_step
    other = others.get(aim.of_row) if aim.of_row is not None else None
    if other is None or other.status != "measured":
        return
    if aim.share_of_row is not None and result.samples_per_second and other.samples_per_second:
        share = result.samples_per_second / row.gpus / (other.samples_per_second / other.gpus)
        result.met["share_of_row"] = share >= aim.share_of_row
    if aim.loss_within is not None:
        difference = loss_difference(result.losses, other.losses)
        if difference is not None:
            result.met["loss_within"] = difference <= aim.loss_within


def loss_difference(losses: Mapping[int, float], others: Mapping[int, float]) -> float | None:
    """Return how far the mean losses of two runs are apart over the later half of the steps that both have logged."""
    common = sorted(set(losses) & set(others))
    common = common[len(common) // 2 :]
    if not common:
        return None
    ours, theirs = (sum(each[step] for step in common) / len(common) for each in (losses, others))
    return abs(ours - theirs) / theirs


def summarize(result: Result) -> str:
    """Return a result in a line."""
    if result.problem is not None:
        return f"{result.status}: {result.problem}"
    numbers = {
        "samples/s": result.samples_per_second,
        "peak GiB": result.peak_gib,
        "seconds to the first step": result.seconds_to_first_step,
    }
    words = [f"{name} {value:.4g}" for name, value in numbers.items() if value is not None]
    return ", ".join([*words, f"aim met: {all(result.met.values()) if result.met else 'not known'}"])

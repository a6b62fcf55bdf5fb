"""Tests of the observed process: its steps are timed, it is stopped in time, and its failure is one line."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from qwenvl.bench.observe import StopRule, Trace, observe, read_log

TRAINS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
for step in range(1, 200):
    print(f"12:00:00 step {step} of 200: loss 1.5, samples/s 3", file=sys.stderr, flush=True)
    time.sleep(0.05)
"""


def run(program: str, tmp_path: Path, stop: StopRule | None = None, limit: float = 60) -> Trace:
    log = tmp_path / "log"
    return observe([sys.executable, "-c", program], os.environ, log, stop=stop, limit=limit, cwd=tmp_path)


def test_a_run_is_let_save_and_end_when_enough_is_timed(tmp_path: Path) -> None:
    trace = run(TRAINS, tmp_path, StopRule(0.2, warmup_steps=3))
    assert trace.failure is None and trace.lines[-1] == "saved"
    assert 3 < max(trace.step_times) < 100
    assert sorted(trace.step_times.values()) == list(trace.step_times.values())
    assert trace.command == [sys.executable, "-c", TRAINS] and trace.environment["PATH"] == os.environ["PATH"]
    assert "step 1 of 200" in (tmp_path / "log").read_text()


def test_a_script_is_reported_as_the_command_that_it_became(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text('exec "$1" -c "import time; print(\'step 1 of 1: loss 2\', flush=True); time.sleep(0.5)"')
    trace = observe(["bash", str(script), sys.executable], os.environ, tmp_path / "log", limit=60, cwd=tmp_path)
    assert trace.command[:2] == [sys.executable, "-c"]


@pytest.mark.parametrize(
    ("program", "failure"),
    [
        ("import sys; print('plan'); sys.exit('error: --frozen_weights is no flag')", "--frozen_weights is no flag"),
        ("raise RuntimeError('CUDA out of memory')", "RuntimeError: CUDA out of memory"),
        (
            "print('[rank1]: torch.OutOfMemoryError: CUDA out of memory'); print('[W1] not destroyed'); exit(1)",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("import sys; sys.exit(3)", "it ended with code 3"),
    ],
)
def test_a_failure_is_one_line(program: str, failure: str, tmp_path: Path) -> None:
    assert run(program, tmp_path).failure == failure


def test_a_run_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    hangs = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started = time.perf_counter()
    trace = run(hangs, tmp_path, limit=1.5)
    assert trace.failure == "it took too long and was ended"
    assert time.perf_counter() - started < 30


def test_the_warm_up_ends_by_steps_and_by_seconds() -> None:
    times = {1: 20.0, 10: 25.0, 20: 30.0, 30: 95.0}
    assert StopRule(1, 5).first_timed(times) == 10
    assert StopRule(1, 5, warmup_seconds=60).first_timed(times) == 30
    assert StopRule(1, 31).first_timed(times) is None
    assert StopRule(70, 5).is_over(times) and not StopRule(71, 5).is_over(times)
    assert not StopRule(0, 5).is_over({})


def test_the_estimate_is_read_from_the_log() -> None:
    table = ["GPU memory of a process    GiB", "weights                    8.31", "total                     15.60"]
    assert Trace([], {}, table).estimated_gib == 15.6
    assert Trace([], {}, ["total      15.60      9.10"]).estimated_gib == 15.6
    assert Trace([], {}, ["total 3"]).estimated_gib is None


@pytest.mark.parametrize("is_stopped", [True, False])
def test_the_log_is_that_of_the_end_or_of_the_newest_checkpoint(is_stopped: bool, tmp_path: Path) -> None:
    for number, name in enumerate(("checkpoint-9", "checkpoint-10", "." if not is_stopped else "unused")):
        (tmp_path / name).mkdir(exist_ok=True)
        history = [{"step": number, "loss": 1.0}, {"step": number, "train_runtime": 1.0}]
        path = tmp_path / name / "trainer_state.json"
        path.write_text(json.dumps({"log_history": history}))
        os.utime(path, (number, number))
    assert read_log(tmp_path) == {1 if is_stopped else 2: {"step": 1 if is_stopped else 2, "loss": 1.0}}
    assert read_log(tmp_path / "nothing") == {}

"""Run a training command in a process of its own, and observe from outside what it logs and when."""

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_STEP = re.compile(r"\bstep (\d+) of \d+: loss ")
# Without a GPU a second number follows, that of a run which recomputes activations.
_ESTIMATE = re.compile(r"^total\s+(\d+\.\d\d)(?:\s+\d+\.\d\d)?$", re.MULTILINE)
# The last line of a traceback; in several processes PyTorch puts the rank before it.
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?((?:[\w.]*(?:Error|Exception)|error):.*)")
_SECONDS_TO_END = 180


@dataclass(frozen=True)
class StopRule:
    """End a run so many seconds after its warm-up, which are `warmup_steps` and `warmup_seconds` after the first."""

    seconds: float
    warmup_steps: int
    warmup_seconds: float = 0.0

    def first_timed(self, step_times: Mapping[int, float]) -> int | None:
        """Return the logged step whose end is the end of the warm-up; None if it has not been reached."""
        earliest = min(step_times.values(), default=0.0) + self.warmup_seconds
        steps = (step for step, at in step_times.items() if step >= self.warmup_steps and at >= earliest)
        return min(steps, default=None)

    def is_over(self, step_times: Mapping[int, float]) -> bool:
        """Whether enough has been timed."""
        first = self.first_timed(step_times)
        return first is not None and max(step_times.values()) - step_times[first] >= self.seconds


@dataclass
class Trace:
    """What was observed of a run: its command and environment, its lines, and when it had logged which step.

    Times are seconds since the process was started.
    """

    command: list[str]
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)
    step_times: dict[int, float] = field(default_factory=dict)
    returncode: int = 0
    timed_out: bool = False

    @property
    def failure(self) -> str | None:
        """The line that says why the run failed, None if it did not."""
        if self.timed_out:
            return "it took too long and was ended"
        if self.returncode == 0:
            return None
        errors = [match[1].removeprefix("error: ") for match in map(_ERROR.match, self.lines) if match]
        lines = errors or [line for line in self.lines if line.strip()] or [f"it ended with code {self.returncode}"]
        return lines[-1].strip()

    @property
    def estimated_gib(self) -> float | None:
        """The GPU memory that the run has estimated before its first step; the last one if there are several."""
        found = _ESTIMATE.findall("\n".join(self.lines))
        return float(found[-1]) if found else None


def observe(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    stop: StopRule | None = None,
    limit: float,
    cwd: Path,
) -> Trace:
    """Run a command until it ends, or let it save and end when `stop` says so; after `limit` seconds kill it.

    All that it writes goes to `log` as well. A shell script that becomes the training program by `exec` is reported as
    the command that it became.
    """
    trace = Trace(list(command), dict(environment))
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=trace.environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timers = [threading.Timer(limit, _kill, [process, trace])]
    timers[0].start()
    try:
        with log.open("w", encoding="utf-8") as copy:
            for line in process.stdout:
                copy.write(line)
                copy.flush()
                trace.lines.append(line.rstrip("\n"))
                step = _STEP.search(line)
                if step is None:
                    continue
                if not trace.step_times:
                    _describe_process(process.pid, trace)
                trace.step_times[int(step[1])] = time.perf_counter() - started
                if stop is not None and len(timers) == 1 and stop.is_over(trace.step_times):
                    process.terminate()
                    timers.append(threading.Timer(_SECONDS_TO_END, _kill, [process, trace]))
                    timers[1].start()
        trace.returncode = process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        _kill(process)
    return trace


def read_log(output_dir: Path) -> dict[int, dict[str, float]]:
    """Return what a run has logged of its steps, by step: from its end, or from the newest checkpoint of its stop."""
    states = sorted(output_dir.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    final = output_dir / "trainer_state.json"
    if final.is_file():
        states.append(final)
    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"] if states else []
    return {entry["step"]: entry for entry in history if "loss" in entry}


def _describe_process(pid: int, trace: Trace) -> None:
    with contextlib.suppress(psutil.Error):  # it may have ended by now
        process = psutil.Process(pid)
        trace.command, trace.environment = process.cmdline(), process.environ()


def _kill(process: subprocess.Popen, trace: Trace | None = None) -> None:
    """Kill a process that has not ended, with all its descendants; with a trace, note there that it took too long."""
    if process.poll() is not None:
        return
    if trace is not None:
        trace.timed_out = True
    with contextlib.suppress(psutil.NoSuchProcess):
        # A launcher starts its processes in sessions of their own, so there is no group to signal.
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

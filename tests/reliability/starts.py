"""Start a training, kill it at a planned moment, and tell how it ended."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 240
# One thread a library: nothing but the main thread may live in the process that forks.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Kill:
    """A signal, and the moment it is sent: `delay` seconds after a phase has begun for the `occurrence`-th time."""

    signal: signal.Signals
    phase: str
    occurrence: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Ending:
    """How a start ended: its exit code (None: it hung), whether it was killed, and its output."""

    code: int | None
    killed: bool
    output: str

    @property
    def first_step(self) -> int | None:
        """The first step that it trained, if it trained one."""
        found = re.search(r"^\S+ step (\d+) of \d+: loss", self.output, re.MULTILINE)
        return int(found[1]) if found else None

    @property
    def is_finished(self) -> bool:
        """Whether the program said that the model is trained, and ended well."""
        return self.code == 0 and "the trained model is in" in self.output

    @property
    def was_stopped(self) -> bool:
        """Whether the program said that it saved and stopped for a signal, and ended well."""
        return self.code == 0 and "stopped by SIG" in self.output


class ForkServer:
    """Starts trainings by forking; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.marks: list[tuple[float, str]] = []

    def __enter__(self) -> "ForkServer":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.server"],
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "server.log").open("w"),
            text=True,
            bufsize=1,
        )
        threads = self._answer("threads")
        if threads != 1:
            raise RuntimeError(f"the server has {threads} threads: what it forks could hang")
        return self

    def __exit__(self, *args: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def start(self, arguments: list[str], kill: Kill | None = None) -> Ending:
        """Train with these arguments, with a kill or to the end; `marks` then has the phases of it."""
        self._count += 1
        log, marks = (self._folder / f"{self._count:04}.{kind}" for kind in ("log", "marks"))
        plan = None if kill is None else vars(kill)
        job = {"arguments": arguments, "log": str(log), "marks": str(marks), "kill": plan}
        job["modules"] = str(self._folder / "modules")
        self._process.stdin.write(json.dumps(job) + "\n")
        pid = self._answer("pid")
        code = self._answer("code", LIMIT_SECONDS)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            self._answer("code")
        lines = [line.split() for line in marks.read_text().splitlines()] if marks.exists() else []
        self.marks = [(float(moment), phase) for moment, phase in lines]
        killed = any(phase == "killed" for _, phase in self.marks)
        return Ending(code, killed, log.read_text(errors="replace") if log.exists() else "")

    def _answer(self, name: str, seconds: float = 120) -> Any:
        """Return the server's next answer, or None if it takes longer. Raises `RuntimeError` if the server is gone."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server has ended: {(self._folder / 'server.log').read_text()[-2000:]}")
        return json.loads(line)[name]


def start_launcher(arguments: list[str], output_dir: Path, log: Path, kill: Kill | None) -> tuple[Ending, bool]:
    """Train through the real launcher; return how it ended, and whether no process of the run is left.

    The kill goes to the launcher, after `delay` seconds of the phase "start" or "step", which the output shows.
    """
    command = [sys.executable, "-m", "qwenvl.train.launch", "--standalone", "--nproc_per_node=1"]
    with log.open("w") as stream:
        launcher = subprocess.Popen(
            [*command, str(REPOSITORY / "qwenvl/train/train_qwen.py"), *arguments],
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    killed = kill is not None and _reached(kill, launcher, log)
    if killed:
        time.sleep(kill.delay)
        killed = launcher.poll() is None
        launcher.send_signal(kill.signal)
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = launcher.wait(timeout=LIMIT_SECONDS)
    left = _wait_until_gone(str(output_dir), seconds=30 if code is not None else 0)
    launcher.kill()
    launcher.wait()
    for process in left:
        process.kill()
    return Ending(code, killed, log.read_text(errors="replace")), not left


def _reached(kill: Kill, launcher: subprocess.Popen, log: Path) -> bool:
    """Wait for the begin of the phase of a kill; False if the program ends before."""
    if kill.phase == "start":
        return True
    deadline = time.monotonic() + LIMIT_SECONDS
    while launcher.poll() is None and time.monotonic() < deadline:
        if len(re.findall(r" step \d+ of \d+: loss", log.read_text(errors="replace"))) >= kill.occurrence:
            return True
        time.sleep(0.01)
    return False


def _wait_until_gone(word: str, seconds: float) -> list[psutil.Process]:
    """Wait until no process has a word in its command line; return those that still have it."""
    deadline = time.monotonic() + seconds
    while left := [each for each in psutil.process_iter(["cmdline"]) if word in (each.info["cmdline"] or [])]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []

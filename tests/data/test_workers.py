"""Tests of what is said when a data worker dies: which, why, and what to do."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from qwenvl.data import workers
from qwenvl.data.workers import explain_dead_workers, ignore_signals
from qwenvl.errors import UserError


class Deadly(Dataset):
    """Numbers, whose fourth ends the process that reads it by a signal."""

    def __init__(self, signum: signal.Signals) -> None:
        self.signum = signum

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            os.kill(os.getpid(), self.signum)
        return torch.zeros(1)


def read(signum: signal.Signals) -> None:
    for _ in DataLoader(Deadly(signum), batch_size=1, num_workers=1, worker_init_fn=ignore_signals):
        pass


@pytest.mark.parametrize(
    ("signum", "reason"),
    [
        (signal.SIGKILL, r"Killed\), most often because memory ran out: lower --dataloader_num_workers \(now 1\)"),
        (signal.SIGSEGV, r"Segmentation fault\), a library that reads images or videos crashed: tools/check_data.py"),
        (signal.SIGBUS, r"Bus error\), the shared memory is full: start the container with --shm-size"),
    ],
)
def test_a_dead_worker_is_named_with_the_reason_and_the_remedy(signum: signal.Signals, reason: str):
    told = rf"^a data worker \(pid \d+\) was ended by a signal \({reason}"
    with pytest.raises(UserError, match=told) as caught, explain_dead_workers(1):
        read(signum)
    assert "--resume_from_checkpoint auto" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_live_on_through_what_their_process_group_gets():
    with explain_dead_workers(1):
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            read(signum)


@pytest.mark.parametrize(
    "broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError()]
)
def test_a_connection_that_breaks_before_the_death_is_told_is_the_same_line(broken: Exception):
    def die_later(*args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, die_later)
    try:
        with pytest.raises(UserError, match=r"pid 7\) was ended by a signal \(Killed\)"), explain_dead_workers(2):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            raise broken
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_death_that_only_an_empty_queue_tells_is_found_behind_other_errors():
    with pytest.raises(UserError, match=r"pid 7, 8\) ended without a message"), explain_dead_workers(2):
        try:
            raise RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
        except RuntimeError as error:
            raise OSError("broken pipe") from error


def test_a_memory_limit_that_was_hit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = tmp_path / "memory.events"
    monkeypatch.setattr(workers, "_MEMORY_EVENTS", events)
    events.write_text("oom 1\noom_kill 1\n")
    with pytest.raises(UserError, match="memory limit of this container was hit, lower"), explain_dead_workers(1):
        events.write_text("oom 2\noom_kill 2\n")
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_the_process_of_several_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="a data worker of training process 1 "), explain_dead_workers(1):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def test_other_errors_pass_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_SECONDS_FOR_A_SIGNAL", 0.01)
    for error in (
        RuntimeError("a defect"),
        UserError("a mistake"),
        ConnectionResetError("the hub"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)) as caught, explain_dead_workers(1):
            raise error
        assert caught.value is error

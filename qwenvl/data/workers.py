"""Make DataLoader workers ignore signals, and explain in one line why one of them died."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from qwenvl.errors import UserError

# Both forms of PyTorch's message: from its handler of SIGCHLD, and from the queue that stays empty.
# https://github.com/pytorch/pytorch/blob/v2.11.0/torch/csrc/DataLoader.cpp#L140-L190
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")
_SECONDS_FOR_A_SIGNAL = 2
_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_LESS_MEMORY = "lower --dataloader_num_workers (now {given}) or --dataloader_prefetch_factor"
_OUT_OF_MEMORY = f"most often because memory ran out: {_LESS_MEMORY}"
_MEMORY_LIMIT = f"the memory limit of this container was hit, {_LESS_MEMORY}"
_CONTINUE = "continue from the last checkpoint with --resume_from_checkpoint auto"
_CRASH = "a library that reads images or videos crashed: tools/check_data.py --decode full finds the file"
_REASONS = {
    "Bus error": "the shared memory is full: start the container with --shm-size=8g, or set --dataloader_num_workers 0",
    "Segmentation fault": _CRASH,
    "Aborted": _CRASH,
    "Illegal instruction": _CRASH,
    "Floating point exception": _CRASH,
}


def ignore_signals(worker_id: int) -> None:
    """Let a DataLoader worker ignore signals to its whole process group: the trainer decides when to end it."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


@contextlib.contextmanager
def explain_dead_workers(num_workers: int, go_on: str = _CONTINUE) -> Iterator[None]:
    """Raise `UserError` with the worker and the reason if the death of a DataLoader worker ends the block.

    The message names `num_workers`, and `go_on` as what to do next. PyTorch raises its error anywhere in the main
    thread, from a signal handler: the block must contain all work that is done while workers are alive.
    """
    killed_before = _processes_killed_for_memory()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        death = _find_death(error) or _await_death(error)
        if death is None:
            raise
        raise UserError(_explain(death, num_workers, _processes_killed_for_memory() > killed_before, go_on)) from None


def _find_death(error: BaseException | None) -> re.Match[str] | None:
    """Return PyTorch's message about a worker's death, from an error or its chain of causes and contexts.

    The broken pipes and connections that a death causes may be raised before or after it.
    """
    seen = set()
    found = None
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        match = _DEAD_WORKER.search(str(error))
        if match is not None and (found is None or match[2]):  # the one that names the signal is more specific
            found = match
        error = error.__cause__ or error.__context__
    return found


def _await_death(error: Exception) -> re.Match[str] | None:
    """Wait for PyTorch's message about a worker's death if `error` is a broken connection; return it, or None.

    The connections of a process close before its parent gets the signal of its death.
    """
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return None
    try:
        time.sleep(_SECONDS_FOR_A_SIGNAL)
    except RuntimeError as death:  # from PyTorch's handler of SIGCHLD
        return _find_death(death)
    return None


def _explain(death: re.Match[str], num_workers: int, memory_limit_hit: bool, go_on: str) -> str:
    pids, signal_name = death.groups()
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = f" of training process {os.environ['RANK']}" if world_size > 1 else ""
    event = f"was ended by a signal ({signal_name.strip()})" if signal_name else "ended without a message"
    reason = _MEMORY_LIMIT if memory_limit_hit else _REASONS.get((signal_name or "").strip(), _OUT_OF_MEMORY)
    reason = reason.format(given=num_workers)
    return f"a data worker{rank} (pid {pids}) {event}, {reason}; {go_on}"


def _processes_killed_for_memory() -> int:
    """Return how many processes of this container were killed for lack of memory; 0 if unknown."""
    try:
        fields = _MEMORY_EVENTS.read_text(encoding="ascii").split()
    except OSError:
        return 0
    events = dict(zip(fields[::2], fields[1::2], strict=False))
    return int(events.get("oom_kill", 0))

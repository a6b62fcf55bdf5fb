"""Start the processes that prepare data so that they outlive signals, and say in one line why one of them died."""

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
_GO_ON = "go on from the last checkpoint with --resume_from_checkpoint auto"
_CRASH = "a library that reads images or videos crashed: tools/check_data.py --decode full finds the file"
_REASONS = {
    "Bus error": "the shared memory is full: start the container with --shm-size=8g, or set --dataloader_num_workers 0",
    "Segmentation fault": _CRASH,
    "Aborted": _CRASH,
    "Illegal instruction": _CRASH,
    "Floating point exception": _CRASH,
}


def ignore_signals(worker_id: int) -> None:
    """Let a DataLoader worker outlive what its whole process group gets: the trainer decides, and ends it."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


@contextlib.contextmanager
def explain_dead_workers(num_workers: int, go_on: str = _GO_ON) -> Iterator[None]:
    """Raise `UserError` with which and why, where a DataLoader worker's death ends what is done inside.

    `num_workers` is how many there are and `go_on` what to do next, both for the message. PyTorch raises its error
    anywhere in the main thread, from a signal handler: all work belongs inside that goes on while the workers live.
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
    """Return what PyTorch said of a worker's death, in an error or in one that it was raised from or during.

    The broken pipes and connections that a death leaves come before or after it, as chance has it.
    """
    seen = set()
    found = None
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        match = _DEAD_WORKER.search(str(error))
        if match is not None and (found is None or match[2]):  # the one that names the signal says more
            found = match
        error = error.__cause__ or error.__context__
    return found


def _await_death(error: Exception) -> re.Match[str] | None:
    """Return what PyTorch says of a worker's death a moment after the connection to it has broken, if that is `error`.

    A process lets go of its connections before its parent is told that it is dead.
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
    what = f"was ended by a signal ({signal_name.strip()})" if signal_name else "ended without a word"
    reason = _MEMORY_LIMIT if memory_limit_hit else _REASONS.get((signal_name or "").strip(), _OUT_OF_MEMORY)
    reason = reason.format(given=num_workers)
    return f"a data worker{rank} (pid {pids}) {what}, {reason}; {go_on}"


def _processes_killed_for_memory() -> int:
    """Return how many processes of this container were killed for want of memory; 0 where nothing tells."""
    try:
        words = _MEMORY_EVENTS.read_text(encoding="ascii").split()
    except OSError:
        return 0
    events = dict(zip(words[::2], words[1::2], strict=False))
    return int(events.get("oom_kill", 0))

"""Collectives used outside the Trainer."""

import logging
import os
import sys
import threading
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

_left = threading.Event()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait until all processes have called this; return at once if there is only one."""
    if _is_distributed():
        dist.barrier()


def leave_together() -> None:
    """Wait until all processes are done, then close the connections between them.

    https://docs.pytorch.org/docs/2.11/distributed.html#shutdown
    """
    if _is_distributed():
        dist.barrier()
        dist.destroy_process_group()
        _left.set()


def exit_at_once_after_leaving() -> None:
    """End the process with exit code 0 after `leave_together`, before the interpreter is finalized.

    Register it with `atexit` before all other handlers, so that it runs last. DeepSpeed keeps its communication threads
    running. A thread that asks for the interpreter during finalization is terminated in the middle of C++ code, which
    aborts the process with SIGABRT: https://docs.python.org/3.11/c-api/init.html#c.PyEval_RestoreThread. Can be removed
    with Python 3.14, where such a thread waits.
    """
    if _left.is_set():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def is_first_process() -> bool:
    """Whether this process is the one that logs and writes files: rank 0, or the only process."""
    return not _is_distributed() or dist.get_rank() == 0


def broadcast_from_first(value: Any) -> Any:
    """Return the value of the first process in every process; it must be picklable."""
    if not _is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_process(flag: bool, device: torch.device) -> bool:
    """Return, in every process, whether the flag is set on at least one of them."""
    return bool(sum_over_processes([float(flag)], device)[0])


def sum_over_processes(values: list[float], device: torch.device) -> list[float]:
    """Return the sum of each value over all processes."""
    if not _is_distributed():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def is_one_of_several_without_gpu() -> bool:
    """Whether torchrun started this process on a machine that has no GPU."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


def join_deepspeed_processes_on_cpu() -> None:
    """Initialize the process group of DeepSpeed on a machine without a GPU, for which Accelerate selects no backend."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]

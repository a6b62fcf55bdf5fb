"""Owns the few words that processes exchange outside the Trainer."""

import os

import torch
import torch.distributed as dist
from accelerate import PartialState


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait until all processes are here; return at once if there is only one."""
    if _is_distributed():
        dist.barrier()


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell every process whether the flag is set on at least one of them."""
    return bool(sum_over_processes([float(flag)], device)[0])


def sum_over_processes(values: list[float], device: torch.device) -> list[float]:
    """Add up each number over all processes."""
    if not _is_distributed():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def is_main_process() -> bool:
    """Whether this process writes the log and the files."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def join_deepspeed_processes_on_cpu() -> bool:
    """Let the processes that torchrun started on a machine without a GPU find each other; tell whether they did.

    Accelerate chooses a backend for DeepSpeed by the accelerator, and knows none for processors.
    """
    if torch.cuda.is_available() or "LOCAL_RANK" not in os.environ:
        return False
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    del os.environ["ACCELERATE_USE_DEEPSPEED"]
    return True

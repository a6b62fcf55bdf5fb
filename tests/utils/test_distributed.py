"""Tests of the collectives, in one process and in two that are connected by gloo."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qwenvl.utils import distributed
from qwenvl.utils.distributed import (
    any_process,
    barrier,
    broadcast_from_first,
    exit_at_once_after_leaving,
    is_first_process,
    is_one_of_several_without_gpu,
    leave_together,
    sum_over_processes,
)

CPU = torch.device("cpu")


def _run(function: Callable[[int], Any], rank: int, store: str, results: Any) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        results.put((rank, function(rank)))
    except BaseException:
        results.put((rank, traceback.format_exc()))
        raise


def on_two_processes(function: Callable[[int], Any], folder: Path) -> tuple[list[Any], list[int]]:
    """Call the function with the rank in two connected processes; return the results and exit codes by rank."""
    # Forked processes share the imported libraries, whose import takes seconds.
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    store = str(folder / "store")
    processes = [context.Process(target=_run, args=(function, rank, store, results)) for rank in range(2)]
    for process in processes:
        process.start()
    by_rank = dict(results.get() for _ in processes)
    for process in processes:
        process.join(60)
    return [by_rank[0], by_rank[1]], [process.exitcode for process in processes]


def test_a_single_process_is_the_first_and_its_values_are_returned_unchanged() -> None:
    barrier()
    leave_together()
    value = object()
    assert is_first_process() and broadcast_from_first(value) is value
    assert (any_process(True, CPU), any_process(False, CPU)) == (True, False)
    assert sum_over_processes([1.5, 2.0], CPU) == [1.5, 2.0]


def test_two_processes_exchange_values(tmp_path: Path) -> None:
    def exchange(rank: int) -> tuple:
        barrier()
        return (
            is_first_process(),
            broadcast_from_first({"from": rank}),
            sum_over_processes([rank + 1.0, 0.25], CPU),
            any_process(rank == 1, CPU),
            any_process(False, CPU),
        )

    shared = ({"from": 0}, [3.0, 0.5], True, False)
    results, codes = on_two_processes(exchange, tmp_path)
    assert results == [(True, *shared), (False, *shared)] and codes == [0, 0]


def test_after_leaving_no_process_is_connected(tmp_path: Path) -> None:
    def leave(rank: int) -> tuple[bool, bool]:
        leave_together()
        return dist.is_initialized(), distributed._left.is_set()

    assert on_two_processes(leave, tmp_path) == ([(False, True)] * 2, [0, 0])


def test_a_process_that_has_left_ends_at_once_with_success(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(distributed.logging, "shutdown", lambda: None)
    exit_at_once_after_leaving()
    assert codes == []
    distributed._left.set()
    try:
        exit_at_once_after_leaving()
    finally:
        distributed._left.clear()
    assert codes == [0]


@pytest.mark.parametrize(
    ("local_rank", "has_gpu", "expected"), [(None, False, False), ("0", False, True), ("0", True, False)]
)
def test_only_a_process_of_torchrun_without_a_gpu_needs_another_backend(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, has_gpu: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert is_one_of_several_without_gpu() == expected

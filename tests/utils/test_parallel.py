"""Tests of mapping a function over tasks in processes and threads."""

import os
import threading
from collections.abc import Iterator

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.parallel import in_parallel, in_threads


def _square(number: int) -> int:
    return number * number


def _die(number: int) -> None:
    os._exit(number)


def _refuse(number: int) -> None:
    raise UserError(f"task {number}")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int):
    assert list(in_parallel(_square, range(50), workers)) == [number * number for number in range(50)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_reaches_the_caller(workers: int):
    with pytest.raises(UserError, match="task 0"):
        list(in_parallel(_refuse, range(3), workers))


def test_tasks_are_taken_only_a_few_ahead():
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_parallel(_square, tasks(), 2)
    next(results)
    assert len(taken) <= 8
    results.close()


def test_a_worker_that_dies_is_named_as_a_lack_of_memory():
    with pytest.raises(UserError, match="a worker process died.*--workers"):
        list(in_parallel(_die, [1, 2], 2))


@pytest.mark.parametrize("chunk_size", [1, 7])
def test_results_of_threads_come_in_the_order_of_the_tasks(chunk_size: int):
    assert list(in_threads(_square, iter(range(50)), 3, chunk_size)) == [number * number for number in range(50)]


def test_threads_run_at_the_same_time():
    together = threading.Barrier(3, timeout=10)
    assert len({*in_threads(lambda _: (together.wait(), threading.get_ident())[1], range(3), threads=3)}) == 3


def test_threads_take_only_a_few_chunks_ahead():
    taken = []
    results = in_threads(_square, (taken.append(number) or number for number in range(1000)), 2, chunk_size=3)
    next(results)
    assert len(taken) <= 24
    results.close()


def test_an_error_in_a_thread_reaches_the_caller_and_the_rest_is_not_run():
    run = []

    def refuse(number: int) -> None:
        run.append(number)
        raise UserError(f"task {number}")

    with pytest.raises(UserError, match="task 0"):
        list(in_threads(refuse, range(1000), threads=2))
    assert len(run) <= 8


def test_no_thread_is_left_when_the_results_are_not_used_up():
    before = threading.active_count()
    results = in_threads(_square, range(1000), 4)
    next(results)
    results.close()
    assert threading.active_count() == before

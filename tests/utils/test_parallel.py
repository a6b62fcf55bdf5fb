"""Tests of mapping a function over tasks in processes and threads."""

import os
from collections.abc import Iterator

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.parallel import in_parallel


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

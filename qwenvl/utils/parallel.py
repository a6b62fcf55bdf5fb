"""Map a function over tasks in several processes or threads: results in order, few tasks at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from qwenvl.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
# For reading small parts of many files, which waits for the disk (or the network) more than for the processor.
DEFAULT_THREADS = 16
_TASKS_AHEAD = 4


def in_parallel(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for each task in order, from `workers` processes (1: from this one).

    At most a few tasks a worker are taken ahead, so memory does not grow with their number. `function` must be
    importable. Raises what `function` raises, and `UserError` when a worker process dies.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Fresh interpreters: forking a process that has threads (progress bars, decoders) can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from _map_in_order(pool, function, tasks, workers * _TASKS_AHEAD)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, most likely for lack of memory; run again with a smaller --workers"
        ) from None


def in_threads(
    function: Callable[[Task], Result], tasks: Iterable[Task], threads: int = DEFAULT_THREADS, chunk_size: int = 1
) -> Iterator[Result]:
    """Yield `function(task)` for each task in order, from several threads.

    A thread takes `chunk_size` tasks at a time, which pays where a task takes microseconds, such as `os.stat` on a
    local disk. At most a few chunks a thread are taken ahead, so memory does not grow with the number of tasks. Raises
    what `function` raises; tasks that have not begun by then are not run.
    """
    pool = ThreadPoolExecutor(threads)
    chunks = _chunks(tasks, chunk_size)
    for results in _map_in_order(pool, partial(_map_chunk, function), chunks, threads * _TASKS_AHEAD):
        yield from results


def _map_in_order(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], num_ahead: int
) -> Iterator[Result]:
    """Yield the results in the order of the tasks, `num_ahead` of which are under way; shut the pool down after."""
    waiting: deque[Any] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    iterator = iter(tasks)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _map_chunk(function: Callable[[Task], Result], chunk: list[Task]) -> list[Result]:
    return [function(task) for task in chunk]

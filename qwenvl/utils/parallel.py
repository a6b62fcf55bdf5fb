"""Map a function over tasks in several processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from qwenvl.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
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
    waiting: deque[Any] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= workers * _TASKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, most likely for lack of memory; run again with a smaller --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)

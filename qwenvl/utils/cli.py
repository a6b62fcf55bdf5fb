"""Owns what the command-line tools share: arguments, progress, parallel work, whole-or-nothing files, summaries."""

import argparse
import hashlib
import os
import platform
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO, TypeVar

from tqdm import tqdm

from qwenvl.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
_TASKS_AHEAD = 4
# Bytes of a file's name on the file systems of Linux and macOS.
_LONGEST_NAME = 255


class ToolParser(argparse.ArgumentParser):
    """An argument parser that shows defaults in `--help` and says what is wrong in one line, as a `UserError`."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of printing the whole usage."""
        raise UserError(f"{message}; see --help")


def positive_int(text: str) -> int:
    """Return the whole number above 0 that an option was given; for `type=` of argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def progress(items: Iterable[Task], description: str, unit: str, total: int | None = None) -> Iterable[Task]:
    """Show a progress bar on standard error while `items` are used up; none where that is no terminal."""
    return tqdm(items, desc=description, unit=unit, total=total, disable=None)


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


class WholeFiles:
    """Text files of one folder that appear together when the `with` block ends well, and not at all otherwise.

    Raises `UserError` for a folder that cannot be made, for names that exist there unless `overwrite` is set, and in
    any case for those that are one of the `inputs`.
    """

    def __init__(
        self, folder: Path, names: Iterable[str], overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
    ):
        self._final = {name: folder / name for name in names}
        refuse_inputs(self._final.values(), inputs)
        there = [name for name, path in self._final.items() if path.exists()]
        if there and not overwrite:
            raise UserError(f"{folder} already holds {', '.join(there)}; give another --out, or --overwrite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot make the output folder ({error.strerror}); give another --out") from None
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> dict[str, TextIO]:
        try:
            for name, path in self._final.items():
                # A link in the folder must not lead the writing to some other file, so a leftover goes first.
                partial_path(path).unlink(missing_ok=True)
                self._open[name] = open(partial_path(path), "x", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            self.__exit__(OSError, error, None)
            raise UserError(f"{path.parent}: cannot write there ({error.strerror}); give another --out") from None
        return self._open

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            if kind is None:
                stream.flush()
                os.fsync(stream.fileno())
            stream.close()
        for path in self._final.values():
            if kind is None:
                os.replace(partial_path(path), path)
            else:
                partial_path(path).unlink(missing_ok=True)


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise `UserError` if writing one of the outputs would replace an input, under whatever name or link.

    Outputs that are not there yet replace nothing, and inputs that are None or not there are no concern of this check.
    """
    there = {key: output for output in outputs if (key := _file_key(output)) is not None}
    for given in inputs if there else ():
        hit = None if given is None else there.get(_file_key(given))
        if hit is not None:
            raise UserError(
                f"{hit} is what this command reads ({given}), and would be written over: give another --out"
            )


def _file_key(path: str | Path) -> tuple[int, int] | None:
    """Return what is equal for all names of one file, as for `os.path.samefile`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def partial_path(path: Path) -> Path:
    """Return where a file is written until it is whole; always the same, so that a killed run leaves nothing behind."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        # The whole name fits on the disk, and with the additions it would not.
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.partial"
    return path.with_name(name)


def print_summary(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Print a two-column table on standard output; whole numbers get thousands separators."""
    cells = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in rows]
    left = max((len(name) for name, _ in cells), default=0)
    right = max((len(value) for _, value in cells), default=0)
    lines = [title, *(f"  {name:<{left}}  {value:>{right}}" for name, value in cells)]
    sys.stdout.write("\n".join(lines) + "\n")


def peak_memory_mib() -> int:
    """Return the largest resident memory that this process or one of its finished workers has had, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit // 2**20

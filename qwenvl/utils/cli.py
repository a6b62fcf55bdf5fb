"""Parse the arguments of the command-line tools, and show their progress, machine and summary."""

import argparse
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from qwenvl.errors import UserError
from qwenvl.utils.tables import format_summary

Task = TypeVar("Task")


class OneLineErrors:
    """Mixin for argument parsers: report an invalid command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of printing the whole usage."""
        raise UserError(f"{message}; see --help")


class ToolParser(OneLineErrors, argparse.ArgumentParser):
    """An argument parser that shows defaults in `--help`, and reports an invalid command line in one line."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def positive_int(text: str) -> int:
    """Return the value of an option that takes a positive integer; for `type=` of argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def progress(items: Iterable[Task], description: str, unit: str, total: int | None = None) -> Iterable[Task]:
    """Yield the items with a progress bar on standard error, or without one if that is not a terminal."""
    return tqdm(items, desc=description, unit=unit, total=total, disable=None)


def print_summary(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """Print a title and a table of names and values on standard output."""
    sys.stdout.write(format_summary(title, rows) + "\n")


def peak_memory_mib() -> int:
    """Return the peak resident memory of this process or of any of its finished workers, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit // 2**20

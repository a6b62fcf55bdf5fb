"""Owns the launcher: torchrun, but with the training's own exit code and a SIGTERM that lets the training save.

`python -m qwenvl.train.launch` takes every flag of torchrun.
"""

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

logger = logging.getLogger(__name__)

SIGNAL_EXIT_CODE = 128  # a shell's exit code for a process that a signal ended is 128 + the signal's number


def main(argv: list[str] | None = None) -> int:
    """Run torchrun on `argv` and return the exit code of the training process that failed first, or 0.

    On SIGTERM the training processes are told and waited for: torchrun itself kills them after 30 seconds and fails.
    """
    arguments = parse_args(argv)
    signals = [name for name in arguments.signals_to_handle.split(",") if name.strip() != "SIGTERM"]
    arguments.signals_to_handle = ",".join(signals) or "SIGINT"
    # The training process explains its own end; torchrun's view of it would bury that under a table and a traceback.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    with _sigterm_passed_on():
        try:
            run(arguments)
        except ChildFailedError as error:
            return _report(error)
    return 0


@contextlib.contextmanager
def _sigterm_passed_on() -> Iterator[None]:
    """Send each SIGTERM on to the direct children only: data loading workers must live until their trainer is done."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        children = psutil.Process().children()
        if not children:
            raise SystemExit(SIGNAL_EXIT_CODE + signum)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signum)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _report(error: ChildFailedError) -> int:
    """Return the exit code for the root failure and, unless it was a user's mistake, log which process it was."""
    rank, failure = _root_failure(error)
    code = failure.exitcode if failure.exitcode > 0 else SIGNAL_EXIT_CODE - failure.exitcode
    if failure.exitcode < 0:
        logger.error(
            "training process of rank %d was ended by %s%s",
            rank,
            signal.Signals(-failure.exitcode).name,
            " (often: out of memory)" if failure.exitcode == -signal.SIGKILL else "",
        )
    elif code == 1:
        logger.error("training process of rank %d failed; its traceback is above", rank)
    return code


def _root_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return (rank, failure) of the first process to fail, passing over those ended because another failed."""
    failures = sorted(error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))
    return failures[0]


if __name__ == "__main__":
    sys.exit(main())

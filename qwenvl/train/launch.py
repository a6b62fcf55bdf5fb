"""Launch a run as torchrun does, but with the training's own exit code, and with signals that let the training save.

`python -m qwenvl.train.launch` takes every flag of torchrun. SIGTERM and SIGHUP let the training save and end with 0,
Ctrl-C ends it with 130; a second Ctrl-C does not wait for it.
"""

import contextlib
import logging
import os
import resource
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from qwenvl.errors import LAUNCHER_VARIABLE, exit_on_user_error
from qwenvl.train.signals import SIGNAL_EXIT_CODE, STOP_SIGNALS, handle, leave_dead_terminal

if TYPE_CHECKING:  # importing PyTorch takes seconds; main handles a Ctrl-C in that time
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

logger = logging.getLogger(__name__)

_PASSED_ON = (*STOP_SIGNALS, signal.SIGINT)


def main(argv: list[str] | None = None) -> int:
    """Run torchrun on `argv` and return the exit code of the training process that failed first, or 0.

    Signals are forwarded to the training processes, and their end is awaited: torchrun itself would kill them after 30
    seconds: https://github.com/pytorch/pytorch/blob/v2.11.0/torch/distributed/elastic/multiprocessing/api.py#L864
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    arguments = parse_args(argv)
    names = {each.name for each in _PASSED_ON}
    signals = [name for name in arguments.signals_to_handle.split(",") if name.strip() not in names]
    arguments.signals_to_handle = ",".join(signals) or "SIGQUIT"  # torchrun needs at least one
    # The training process reports its own failure; torchrun would bury that under a table and a traceback.
    for module in ("multiprocessing", "agent.server"):
        logging.getLogger(f"torch.distributed.elastic.{module}.api").setLevel(logging.CRITICAL)
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    passing = _SignalsPassedOn()
    try:
        run(arguments)
        code = 0
    except ChildFailedError as error:
        code = _report(error)
    except SignalException as error:
        code = SIGNAL_EXIT_CODE + error.sigval
    for each in STOP_SIGNALS:  # the training is over and has reported its result: nothing is left to stop
        signal.signal(each, signal.SIG_IGN)
    return SIGNAL_EXIT_CODE + signal.SIGINT if passing.interrupted and code else code


class _SignalsPassedOn:
    """Forwards signals to the direct children only: data loading workers have to outlive their trainer."""

    def __init__(self) -> None:
        import psutil  # not in the handler: the next signal could interrupt the import

        self._psutil = psutil
        self.interrupted = False
        for each in _PASSED_ON:
            handle(each, self._pass_on)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            leave_dead_terminal()
        children = self._psutil.Process().children()
        if not children:
            if resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss:
                return  # they have ended already, and their exit code counts
            raise SystemExit(SIGNAL_EXIT_CODE + signum)
        is_second = signum == signal.SIGINT and self.interrupted
        self.interrupted |= signum == signal.SIGINT
        for child in children:
            with contextlib.suppress(self._psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL if is_second else signum)


def _report(error: "ChildFailedError") -> int:
    """Return the exit code for the root failure and, unless it was a user's mistake, log the process."""
    rank, failure = _root_failure(error)
    code = failure.exitcode if failure.exitcode > 0 else SIGNAL_EXIT_CODE - failure.exitcode
    if failure.exitcode < 0:
        logger.error(
            "training process of rank %d was killed by %s%s",
            rank,
            signal.Signals(-failure.exitcode).name,
            " (often: out of memory)" if failure.exitcode == -signal.SIGKILL else "",
        )
    elif code == 1:
        logger.error("training process of rank %d failed; its traceback is above", rank)
    return code


def _root_failure(error: "ChildFailedError") -> tuple[int, "ProcessFailure"]:
    """Return (rank, failure) of the first process to fail, ignoring those terminated because another failed."""
    failures = sorted(error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))
    return failures[0]


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            sys.exit(main())
        except KeyboardInterrupt:  # before a training process was started
            sys.exit(SIGNAL_EXIT_CODE + signal.SIGINT)

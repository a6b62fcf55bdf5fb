"""Tell processes of a run about the end of others: of their launcher, and of the terminal that shows their words."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from qwenvl.errors import LAUNCHER_VARIABLE

# What asks a run to end, by a cluster or by a terminal that is closed: the run saves first.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SIGNAL_EXIT_CODE = 128  # a shell's exit code for a process that a signal ended is 128 + the signal's number
_SECONDS_BETWEEN_LOOKS = 0.5

Handler = Callable[[int, FrameType | None], None]


def handle(signum: signal.Signals, handler: Handler | signal.Handlers) -> None:
    """Install a handler for a signal, but leave one alone that is ignored, as nohup does to SIGHUP."""
    if signal.getsignal(signum) is not signal.SIG_IGN:
        signal.signal(signum, handler)


def watch_launcher() -> None:
    """Send this process SIGTERM when torchrun or our launcher, which started it, is gone: it saves and ends.

    Does nothing in a process that neither has started.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = int(os.environ.get(LAUNCHER_VARIABLE, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError):  # a launcher that was killed has perhaps taken the terminal along
            sys.stderr.write("the launcher of this run is gone: saving and ending, as on SIGTERM\n")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def leave_dead_terminal() -> None:
    """Send the output to /dev/null if it went to a terminal that is gone, where each write would be an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            descriptor = stream.fileno()
            if _was_terminal(descriptor) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _was_terminal(descriptor: int) -> bool:
    """Whether a descriptor was opened on a terminal, which may have been closed since."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(("/dev/pts/", "/dev/tty"))
    return False

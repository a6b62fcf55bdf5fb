"""Handle signals in the processes of a run: watch their launcher, and survive a closed terminal."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from qwenvl.errors import LAUNCHER_VARIABLE

# Sent by a cluster or a closing terminal to end a run: the run saves first.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SIGNAL_EXIT_CODE = 128  # a shell's exit code for a process killed by a signal is 128 + its number
_SECONDS_BETWEEN_LOOKS = 0.5

Handler = Callable[[int, FrameType | None], None]


def handle(signum: signal.Signals, handler: Handler | signal.Handlers) -> None:
    """Install a handler for a signal, unless the signal is ignored, as SIGHUP is under nohup."""
    if signal.getsignal(signum) is not signal.SIG_IGN:
        signal.signal(signum, handler)


def watch_launcher() -> None:
    """Send this process SIGTERM when the launcher that started it, torchrun or ours, has ended: it saves and exits.

    Does nothing in a process that was started by neither.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = int(os.environ.get(LAUNCHER_VARIABLE, os.getppid()))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError):  # the terminal may have been closed with the launcher
            sys.stderr.write("the launcher of this run has ended: saving and exiting, as on SIGTERM\n")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()


def leave_dead_terminal() -> None:
    """Redirect the output to /dev/null if its terminal has been closed, where each write would fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            descriptor = stream.fileno()
            if _was_terminal(descriptor) and not os.isatty(descriptor):
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, descriptor)
                os.close(devnull)


def _was_terminal(descriptor: int) -> bool:
    """Whether a descriptor was opened on a terminal, even if that has been closed since."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(("/dev/pts/", "/dev/tty"))
    return False

"""Tests of what a process does at signals, and when its terminal is closed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwenvl.train.signals import handle, watch_launcher

REPOSITORY = Path(__file__).resolve().parents[2]
WRITES_AFTER_THE_END_OF_ITS_TERMINAL = """
import os, sys
from qwenvl.train.signals import leave_dead_terminal
sys.stdin.readline()
try:
    os.write(1, b"x")
    sys.exit("the terminal is still there")
except OSError:
    pass
leave_dead_terminal()
print("nobody reads this", flush=True)
"""


def test_output_to_a_terminal_that_was_closed_goes_nowhere_instead_of_failing():
    master, terminal = os.openpty()
    command = [sys.executable, "-c", WRITES_AFTER_THE_END_OF_ITS_TERMINAL]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=terminal, stderr=pipe, text=True)
    os.close(terminal)
    os.close(master)
    _, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_output_to_a_file_or_a_pipe_is_left_alone():
    script = "from qwenvl.train.signals import leave_dead_terminal; leave_dead_terminal(); print('read')"
    answer = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.stdout == "read\n"


@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_nohup_ignores_stays_ignored(ignored: bool) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    called = []

    handle(signal.SIGHUP, lambda signum, frame: called.append(signum))
    signal.raise_signal(signal.SIGHUP)

    assert called == ([] if ignored else [signal.SIGHUP])


def test_a_process_that_no_launcher_started_watches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)

    watch_launcher()

    assert "launcher watch" not in {thread.name for thread in threading.enumerate()}

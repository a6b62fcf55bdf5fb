"""Write files whole or not at all, and remove what killed processes have left half-written."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"
# No file here takes so long to write: what is older was left by a process of another machine.
ABANDONED_AFTER_SECONDS = 24 * 60 * 60


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give the path of an unfinished file, which becomes the target where all goes well and vanishes otherwise."""
    unfinished = target.with_name(f"{target.name}@{_process_name(os.getpid())}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str = f"*{UNFINISHED}") -> int:
    """Remove the unfinished files of processes that are no more; return how many. Those of living ones stay."""
    removed = 0
    for path in folder.glob(pattern):
        try:
            if _is_abandoned(path):
                path.unlink()
                removed += 1
        except OSError:
            continue  # another process has removed it, or may
    return removed


def _is_abandoned(path: Path) -> bool:
    machine, _, pid = path.name.removesuffix(UNFINISHED).rpartition("@")[2].rpartition("-")
    if pid.isdecimal() and _process_name(int(pid)) == f"{machine}-{pid}" and not _is_alive(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_AFTER_SECONDS


def _process_name(pid: int) -> str:
    """Return a name of a process of this machine and container: several containers may share a host's name."""
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return f"{socket.gethostname()}-{container}-{pid}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True

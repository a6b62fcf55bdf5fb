"""Lock an output folder against a second run: by a kernel lock on a file, and a heartbeat for other machines.

The first process of a run holds `<output_dir>/.lock` until the run ends. On one machine a POSIX record lock decides: it
ends with the process, however that ends, and data workers do not inherit it. Network file systems may not support such
locks, or may keep them for a machine that is down; there the file's time decides, which the holder renews.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from qwenvl.errors import UserError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
HEARTBEAT_SECONDS = 10.0
# A run on another machine that has not renewed its lock for this long is considered dead.
STALE_SECONDS = 60.0
# The clocks of two machines may differ by less than this.
_CLOCK_SECONDS = 600.0
_NO_KERNEL_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `boot` identifies the machine since its last start."""

    host: str
    pid: int
    boot: str
    process_started: float
    started: str
    nonce: str

    def describe(self) -> str:
        """Return the process, the machine and the start time of the run."""
        return f"process {self.pid} on {self.host}, since {self.started}"


@dataclass
class _Held:
    path: Path
    descriptor: int
    stop: threading.Event
    removed_if_empty: list[Path]


_held: dict[Path, _Held] = {}


def lock_output_dir(output_dir: str, *, inner_folders: tuple[str, ...] = ()) -> None:
    """Lock an output folder, created if missing, for this process until `release_output_dirs`.

    That removes the folders created here, and those called `inner_folders` inside, if they are empty by then. Raises
    `UserError` that names the run that holds the lock. The lock of a dead run is taken over: at once on the same
    machine, and from another one after waiting `STALE_SECONDS` without a renewal.
    """
    folder = Path(output_dir).resolve()
    if folder in _held:
        raise UserError(f"--output_dir {output_dir} is in use by this process; end that run first")
    removed_if_empty = [folder / name for name in inner_folders]
    removed_if_empty += [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, watched_since, seen = folder / LOCK_NAME, None, None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        state = _try_kernel_lock(descriptor)
        if not _is_same_file(path, descriptor):  # its holder has just removed it
            os.close(descriptor)
            continue
        holder, renewed = _read_holder(descriptor), os.fstat(descriptor).st_mtime
        if holder is None or holder.boot == _boot_id():
            if state == "held" or (state == "unsupported" and holder is not None and _is_alive(holder)):
                os.close(descriptor)
                raise _in_use_error(output_dir, holder)
            break
        now = time.monotonic()
        if watched_since is None:
            watched_since, seen = now, renewed
            logger.info("%s: its lock is held by %s; waiting for a renewal", output_dir, holder.describe())
        if renewed != seen:
            os.close(descriptor)
            raise _in_use_error(output_dir, holder)
        if now - watched_since > STALE_SECONDS or time.time() - renewed > _CLOCK_SECONDS:
            logger.warning("%s: taking over the lock of a run that is dead: %s", output_dir, holder.describe())
            if state == "held":  # by a machine that is down: a new file has a new lock
                if _is_same_file(path, descriptor):
                    path.unlink()
                os.close(descriptor)
                watched_since = None
                continue
            break
        os.close(descriptor)
        time.sleep(min(1.0, STALE_SECONDS / 10))
    _hold(folder, path, descriptor, removed_if_empty, confirm=state == "unsupported")


def check_lock(output_dir: str) -> None:
    """Raise `UserError` if another run has taken the folder over, after a pause in which this one seemed dead."""
    held = _held.get(Path(output_dir).resolve())
    if held is not None and not _is_same_file(held.path, held.descriptor):
        raise UserError(f"--output_dir {output_dir} has been taken over by another run; this one stops without saving")


@contextlib.contextmanager
def release_output_dirs() -> Iterator[None]:
    """Release at the end the locks taken inside, and remove folders created for them that are still empty."""
    before = set(_held)
    try:
        yield
    finally:
        for folder in set(_held) - before:
            _release(_held.pop(folder))


def _hold(folder: Path, path: Path, descriptor: int, removed_if_empty: list[Path], *, confirm: bool) -> None:
    process = psutil.Process()
    holder = Holder(
        host=socket.gethostname(),
        pid=process.pid,
        boot=_boot_id(),
        process_started=process.create_time(),
        started=time.strftime("%Y-%m-%d %H:%M:%S"),
        nonce=secrets.token_hex(8),
    )
    text = json.dumps(asdict(holder)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    os.fsync(descriptor)
    if confirm:  # without kernel locks two runs may have written at once: the last one wins
        time.sleep(1.0)
        if (winner := _read_holder(descriptor)) != holder:
            os.close(descriptor)
            raise _in_use_error(str(folder), winner)
    held = _Held(path, descriptor, threading.Event(), removed_if_empty)
    _held[folder] = held
    threading.Thread(target=_renew, args=(held,), name="output-folder-lock", daemon=True).start()


def _renew(held: _Held) -> None:
    """Renew the lock's time until the run ends; errors are ignored here and show at the next save."""
    while not held.stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            # By its descriptor: the name may be another run's by now, and opening it here would release the lock.
            os.utime(held.descriptor)


def _release(held: _Held) -> None:
    held.stop.set()
    with contextlib.suppress(OSError):
        if _is_same_file(held.path, held.descriptor):
            held.path.unlink()
    os.close(held.descriptor)
    for folder in held.removed_if_empty:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def _try_kernel_lock(descriptor: int) -> str:
    """Return "locked", "held" (by another process) or "unsupported" (by the file system)."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return "held"
        if error.errno in _NO_KERNEL_LOCKS:
            return "unsupported"
        raise
    return "locked"


def _read_holder(descriptor: int) -> Holder | None:
    """Return the holder written in a lock file; None if it is empty, or its writer was killed."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_alive(holder: Holder) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return abs(psutil.Process(holder.pid).create_time() - holder.process_started) < 1.0
    return False


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def _in_use_error(output_dir: str, holder: Holder | None) -> UserError:
    owner = "another run" if holder is None else f"a run: {holder.describe()}"
    return UserError(
        f"--output_dir {output_dir} is in use by {owner}; wait for its end or choose another folder (the lock of a run "
        f"that has died is taken over: at once on its machine, after {STALE_SECONDS:g} seconds without a renewal "
        "from another)"
    )

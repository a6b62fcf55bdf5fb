"""Keep a second run out of an output folder: a lock file that the kernel guards and a heartbeat for other machines.

The first process of a run holds `<output_dir>/.lock` for the run's life. On one machine a POSIX record lock decides: it
ends with the process, however that ends, and data workers do not inherit it. File systems between machines may not pass
such locks on, or may keep them for a machine that is gone; there the file's time decides, which the holder renews.
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
# A run on another machine that has not renewed its lock for so long is dead.
STALE_SECONDS = 60.0
# The clocks of two machines may differ by less than this.
_CLOCK_SECONDS = 600.0
_NO_KERNEL_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `boot` is the machine's, from one start of it to the next."""

    host: str
    pid: int
    boot: str
    process_started: float
    started: str
    nonce: str

    def describe(self) -> str:
        """Return where and since when the run is going on."""
        return f"process {self.pid} on {self.host}, since {self.started}"


@dataclass
class _Held:
    path: Path
    descriptor: int
    stop: threading.Event
    removed_if_empty: list[Path]


_held: dict[Path, _Held] = {}


def lock_output_dir(output_dir: str, *, inner_folders: tuple[str, ...] = ()) -> None:
    """Take an output folder, which is made if it is not there, for this process until `release_output_dirs`.

    That removes the folders that were made here, and those called `inner_folders` in it, if they are empty by then.
    Raises `UserError` that names the run that has it. The lock of a dead run is taken over: at once on the same
    machine, and from another one when it has not been renewed for `STALE_SECONDS`, which are waited for.
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
                raise _in_use(output_dir, holder)
            break
        now = time.monotonic()
        if watched_since is None:
            watched_since, seen = now, renewed
            logger.info("%s: its lock is that of %s; watching it for a sign of life", output_dir, holder.describe())
        if renewed != seen:
            os.close(descriptor)
            raise _in_use(output_dir, holder)
        if now - watched_since > STALE_SECONDS or time.time() - renewed > _CLOCK_SECONDS:
            logger.warning("%s: taking over the lock of a run that is dead: %s", output_dir, holder.describe())
            if state == "held":  # by a machine that is gone: a new file has a new lock
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
    """Raise `UserError` if another run has taken the folder over, as after a pause in which this one seemed dead."""
    held = _held.get(Path(output_dir).resolve())
    if held is not None and not _is_same_file(held.path, held.descriptor):
        raise UserError(f"--output_dir {output_dir} has been taken over by another run; this one stops without saving")


@contextlib.contextmanager
def release_output_dirs() -> Iterator[None]:
    """Release at the end what `lock_output_dir` has taken meanwhile, and remove folders made for it that stay empty."""
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
    if confirm:  # without locks of the kernel two runs may have written at once: the last one has it
        time.sleep(1.0)
        if (winner := _read_holder(descriptor)) != holder:
            os.close(descriptor)
            raise _in_use(str(folder), winner)
    held = _Held(path, descriptor, threading.Event(), removed_if_empty)
    _held[folder] = held
    threading.Thread(target=_renew, args=(held,), name="output-folder-lock", daemon=True).start()


def _renew(held: _Held) -> None:
    """Renew the lock's time until the run is over; a folder that has become unreadable shows at the next save."""
    while not held.stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            # By its descriptor: the name may be another run's by now, and to open it here would give the lock away.
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
    """Return who wrote a lock file; None if that is nobody, or somebody who was killed while writing."""
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


def _in_use(output_dir: str, holder: Holder | None) -> UserError:
    whose = "another run" if holder is None else f"a run: {holder.describe()}"
    return UserError(
        f"--output_dir {output_dir} is in use by {whose}; wait for its end or choose another folder (the lock of a run "
        f"that has died is taken over: at once on its machine, after {STALE_SECONDS:g} seconds without a sign of life "
        "from another)"
    )

"""Write files whole or not at all, and remove unfinished files of killed processes."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from qwenvl.errors import UserError

UNFINISHED = ".unfinished"
# No file takes this long to write: an older one was left by a process of another machine.
ABANDONED_AFTER_SECONDS = 24 * 60 * 60
# Bytes of a file name on the file systems of Linux and macOS.
_LONGEST_NAME = 255


@contextmanager
def written_whole(target: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Give the path of an unfinished file that becomes `target` when the block ends, and is removed on an error.

    Args:
        target: The file to write; an older one is replaced.
        exclusive: Whether no other process or thread writes this target at the same time. The unfinished file then has
            the same name in every run, so that the next run replaces what a killed one has left. Otherwise, each
            thread has its own, and `remove_abandoned` removes those of killed processes.
    """
    writer = f"{threading.get_native_id()}@{_process_name(os.getpid())}"
    name = f".{target.name}.partial" if exclusive else f"{target.name}.{writer}{UNFINISHED}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        # The name of the target fits on the disk, but not with the additions.
        digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
        name = name.replace(target.name, digest, 1)
    unfinished = target.with_name(name)
    # What a killed process has left goes first: were it a link, the file that it points to would be overwritten.
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str = f"*{UNFINISHED}") -> int:
    """Remove the unfinished files of processes that have ended; return how many. Those of running processes stay."""
    removed = 0
    for path in folder.glob(pattern):
        try:
            if _is_abandoned(path):
                path.unlink()
                removed += 1
        except OSError:
            continue  # another process has removed it, or owns it
    return removed


def _is_abandoned(path: Path) -> bool:
    machine, _, pid = path.name.removesuffix(UNFINISHED).rpartition("@")[2].rpartition("-")
    if pid.isdecimal() and _process_name(int(pid)) == f"{machine}-{pid}" and not _is_alive(int(pid)):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_AFTER_SECONDS


def _process_name(pid: int) -> str:
    """Return a unique name of a process of this machine and container: several containers may share a host name."""
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
    except OSError:  # it belongs to another user
        return True
    return True


class WholeFiles:
    """Text files of one folder that appear together when the `with` block ends without an error, or not at all.

    Raises `UserError` for a folder that cannot be created, for files that exist unless `overwrite` is set, and always
    for files that are one of the `inputs`.
    """

    def __init__(
        self, folder: Path, names: Iterable[str], overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
    ):
        self._folder = folder
        self._final = {name: folder / name for name in names}
        refuse_inputs(self._final.values(), inputs)
        existing = [name for name, path in self._final.items() if path.exists()]
        if existing and not overwrite:
            raise UserError(f"{folder} already holds {', '.join(existing)}; give another --out, or --overwrite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot create the output folder ({error.strerror}); give another --out"
            ) from None
        self._stack = ExitStack()

    def __enter__(self) -> dict[str, TextIO]:
        with ExitStack() as stack:
            try:
                partial = {
                    name: stack.enter_context(written_whole(path, exclusive=True)) for name, path in self._final.items()
                }
                streams = {name: stack.enter_context(_synced_text(path)) for name, path in partial.items()}
            except OSError as error:
                raise UserError(
                    f"{self._folder}: cannot write in this folder ({error.strerror}); give another --out"
                ) from None
            self._stack = stack.pop_all()
        return streams

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


@contextmanager
def _synced_text(path: Path) -> Iterator[TextIO]:
    """Open a new text file; when the block ends without an error, its content is on the disk."""
    with open(path, "x", encoding="utf-8") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise `UserError` if writing one of the outputs would replace an input, also under another name or link.

    Outputs that do not exist yet replace nothing. Inputs that are None or do not exist are ignored.
    """
    existing = {key: output for output in outputs if (key := _file_key(output)) is not None}
    for given in inputs if existing else ():
        replaced = None if given is None else existing.get(_file_key(given))
        if replaced is not None:
            raise UserError(
                f"{replaced} is what this command reads ({given}), and would be written over: give another --out"
            )


def _file_key(path: str | Path) -> tuple[int, int] | None:
    """Return a key that is equal for all names of a file, as for `os.path.samefile`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino

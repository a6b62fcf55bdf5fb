"""Write files whole or not at all, and remove what killed processes have left half-written."""

import hashlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from qwenvl.errors import UserError

UNFINISHED = ".unfinished"
# No file here takes so long to write: what is older was left by a process of another machine.
ABANDONED_AFTER_SECONDS = 24 * 60 * 60
# Bytes of a file name on the file systems of Linux and macOS.
_LONGEST_NAME = 255


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


class WholeFiles:
    """Text files of one folder that appear together when the `with` block ends well, and not at all otherwise.

    Raises `UserError` for a folder that cannot be made, for names that exist there unless `overwrite` is set, and in
    any case for those that are one of the `inputs`.
    """

    def __init__(
        self, folder: Path, names: Iterable[str], overwrite: bool = False, inputs: Iterable[str | Path | None] = ()
    ):
        self._final = {name: folder / name for name in names}
        refuse_inputs(self._final.values(), inputs)
        there = [name for name, path in self._final.items() if path.exists()]
        if there and not overwrite:
            raise UserError(f"{folder} already holds {', '.join(there)}; give another --out, or --overwrite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot make the output folder ({error.strerror}); give another --out") from None
        self._open: dict[str, TextIO] = {}

    def __enter__(self) -> dict[str, TextIO]:
        try:
            for name, path in self._final.items():
                # A link in the folder must not lead the writing to some other file, so a leftover goes first.
                partial_path(path).unlink(missing_ok=True)
                self._open[name] = open(partial_path(path), "x", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            self.__exit__(OSError, error, None)
            raise UserError(f"{path.parent}: cannot write there ({error.strerror}); give another --out") from None
        return self._open

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            if kind is None:
                stream.flush()
                os.fsync(stream.fileno())
            stream.close()
        for path in self._final.values():
            if kind is None:
                os.replace(partial_path(path), path)
            else:
                partial_path(path).unlink(missing_ok=True)


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Raise `UserError` if writing one of the outputs would replace an input, under whatever name or link.

    Outputs that are not there yet replace nothing, and inputs that are None or not there are no concern of this check.
    """
    there = {key: output for output in outputs if (key := _file_key(output)) is not None}
    for given in inputs if there else ():
        hit = None if given is None else there.get(_file_key(given))
        if hit is not None:
            raise UserError(
                f"{hit} is what this command reads ({given}), and would be written over: give another --out"
            )


def _file_key(path: str | Path) -> tuple[int, int] | None:
    """Return what is equal for all names of one file, as for `os.path.samefile`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def partial_path(path: Path) -> Path:
    """Return where a file is written until it is whole; always the same, so that a killed run leaves nothing behind."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        # The whole name fits on the disk, and with the additions it would not.
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.partial"
    return path.with_name(name)

"""Damage what a run depends on: a file of a checkpoint, or the room on its disk."""

import contextlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

_MIB = 2**20
_WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "half": lambda path, chance: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path, chance: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path, chance: path.write_bytes(b""),
    "deleted": lambda path, chance: path.unlink(),
    "garbage": lambda path, chance: path.write_bytes(chance.randbytes(path.stat().st_size)),
}


def break_file(checkpoint: Path, chance: random.Random) -> str:
    """Break a random file of a checkpoint in a random way; return what was done.

    Not its model card, which people may edit: it breaks nothing.
    """
    files = (each for each in checkpoint.rglob("*") if each.is_file() and each.name != "README.md")
    path = chance.choice(sorted(each for each in files if each.stat().st_size))
    way = chance.choice(sorted(_WAYS))
    _WAYS[way](path, chance)
    return f"{checkpoint.name}/{path.relative_to(checkpoint)} {way}"


class SmallDisk:
    """A disk in memory that has no room for all that a run saves, until it is enlarged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.is_small = True

    @classmethod
    def mount(cls, folder: Path, mib: float) -> "SmallDisk | None":
        """Mount one of so many MiB at a new folder; None where this user may not mount."""
        folder.mkdir(parents=True)
        if _succeeds("mount", "-t", "tmpfs", "-o", f"size={int(mib * _MIB)}", "tmpfs", str(folder)):
            return cls(folder)
        return None

    def enlarge(self) -> None:
        """Make room for everything."""
        if not _succeeds("mount", "-o", f"remount,size={512 * _MIB}", str(self._folder)):
            raise RuntimeError(f"{self._folder} cannot be enlarged")
        self.is_small = False

    def unmount(self) -> None:
        """Take the disk away, with all that is on it."""
        _succeeds("umount", "--lazy", str(self._folder))


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False

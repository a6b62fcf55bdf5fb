"""Write and verify manifests: sizes and checksums of a checkpoint's files, to find a broken file before use."""

import hashlib
import json
import os
import zlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qwenvl.model.structure import find_structural_fault
from qwenvl.utils.json_text import read_json
from qwenvl.utils.parallel import in_threads

MANIFEST_NAME = "manifest.json"
# One thread hashes 2 GB/s by SHA-256 and 7 GB/s by CRC-32, which detects every damage of up to 32 bits in a row and all
# others but one in four billion. Above this size speed matters; blocks are read by several threads.
BLOCK_BYTES = 64 << 20
_THREADS = 4
# The model card is text for people, who may edit it.
_UNVERIFIED = ("README.md",)
# Read only to resume a run: `load_checkpoint` does not verify gigabytes of optimizer state.
_RESUME_ONLY = (
    *("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json"),
    *("global_step*", "latest", "zero_to_*.py"),
)


def write_manifest(folder: Path) -> None:
    """Describe every file below a folder in its `manifest.json`, after flushing all of them.

    The files, the manifest and the folder are flushed, so that after a power cut the manifest exists only with
    them.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if name != MANIFEST_NAME]
    for name in names:
        _flush_file(folder / name)
    _write(folder, {name: _describe(folder / name) for name in names})
    for inner in {(folder / name).parent for name in names} | {folder}:
        flush_folder(inner)


def replace_file(folder: Path, name: str, source: Path) -> None:
    """Move a new version of one file into a finished checkpoint, keeping its manifest valid at every moment."""
    _flush_file(source)
    if (folder / MANIFEST_NAME).is_file():
        files = read_json(folder / MANIFEST_NAME)["files"]
        new = _describe(source)
        _write(folder, files | {name: files.get(name, new) | {"next": new}})
        os.replace(source, folder / name)
        _write(folder, files | {name: new})
    else:
        os.replace(source, folder / name)
    flush_folder(folder)


def _write(folder: Path, files: dict[str, Any]) -> None:
    unfinished = folder / f"{MANIFEST_NAME}.new"
    with unfinished.open("w", encoding="utf-8") as stream:
        json.dump({"format": 1, "digest": _digest(files), "files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, folder / MANIFEST_NAME)


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, so that a rename survives a power cut."""
    _flush_file(folder)


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_fault(folder: Path, *, for_resume: bool) -> str | None:
    """Return what is wrong with a checkpoint, with the name of the file, or None if it is complete.

    `for_resume` also checks what only a resumed run needs. A checkpoint without a manifest, of an earlier version, is
    checked as far as its files describe themselves.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return find_structural_fault(folder, for_resume=for_resume)
    try:
        manifest = read_json(folder / MANIFEST_NAME)
        files, is_damaged = manifest["files"], manifest["digest"] != _digest(manifest["files"])
    except (ValueError, TypeError, KeyError):
        is_damaged = True
    if is_damaged:
        return f"{MANIFEST_NAME} is damaged"
    names = [name for name in files if name not in _UNVERIFIED and (for_resume or not _is_resume_only(name))]
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size not in [version["bytes"] for version in _versions(files[name])]:
            return f"{name} has {path.stat().st_size:,} bytes, expected {files[name]['bytes']:,}"
    for name in names:
        try:
            found = _describe(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found not in _versions(files[name]):
            return f"{name} is damaged (its content differs from what was written)"
    return None


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files below a folder have."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _versions(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the valid versions of a file: the described one, and one that was about to replace it."""
    now = {key: value for key, value in described.items() if key != "next"}
    return [now, described["next"]] if "next" in described else [now]


def _is_resume_only(name: str) -> bool:
    return any(fnmatch(name.partition("/")[0], pattern) for pattern in _RESUME_ONLY)


def _digest(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    """Return a file's size and hash: SHA-256 if it is small, the CRC-32 of each block if not."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= BLOCK_BYTES:
            return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        return {"bytes": size, "crc32": _block_checksums(stream.fileno(), size)}


def _block_checksums(descriptor: int, size: int) -> list[str]:
    def checksum(offset: int) -> str:
        value, end = 0, min(offset + BLOCK_BYTES, size)
        while offset < end:
            piece = os.pread(descriptor, min(1 << 20, end - offset), offset)
            if not piece:
                break  # the file was truncated: the checksum will not match
            value = zlib.crc32(piece, value)
            offset += len(piece)
        return f"{value:08x}"

    # zlib releases the interpreter's lock.
    return list(in_threads(checksum, range(0, size, BLOCK_BYTES), _THREADS))

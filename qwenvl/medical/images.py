"""Convert a folder of 16-bit or DICOM images to 8-bit files; an interrupted run can be resumed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenvl.data.media.dicom import HEAD_BYTES, is_dicom
from qwenvl.errors import UserError
from qwenvl.medical.convert_image import FORMATS, ImageOptions, ImageTask, convert_image
from qwenvl.utils.cli import progress
from qwenvl.utils.files import WholeFiles
from qwenvl.utils.json_text import encoded_json, read_json, write_json
from qwenvl.utils.parallel import in_parallel

SETTINGS, FAILED = "prepare_images.json", "failed.jsonl"
_IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
_DICOM_SUFFIXES = (".dcm", ".dicom")
# The table of contents of a DICOM medium, itself a DICOM file without an image.
_INDEX_FILE = "DICOMDIR"


@dataclass
class Plan:
    """The work of a run: files to convert, refused files as (path, reason), and the numbers of the other files."""

    tasks: list[ImageTask] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Result:
    """Numbers of files: converted, converted earlier, not images, failed or refused, and tried in this run."""

    converted: int
    done: int
    skipped: int
    failed: int
    tried: int


def convert_folder(
    source: Path, out: Path, options: ImageOptions, overwrite: bool, allow_outside: bool, workers: int
) -> Result:
    """Convert the images below `source` into `out`; failures are listed in failed.jsonl.

    Args:
        source: The folder of the originals.
        out: The folder of the converted files. Those of an earlier run with the same options are kept.
        options: How images are converted.
        overwrite: Convert every image again, and accept an `out` with other files.
        allow_outside: Follow links that lead out of `source`.
        workers: The number of processes.

    Raises:
        UserError: For an `out` with files of other options or of another program, unless `overwrite` is set.
    """
    since = _record_or_verify_options(out, options, overwrite)
    plan = _plan(source, out, options, since, allow_outside)
    reasons = progress(in_parallel(convert_image, plan.tasks, workers), "images", "file", len(plan.tasks))
    failed = [(task.source, reason) for task, reason in zip(plan.tasks, reasons, strict=True) if reason]
    with WholeFiles(out, [FAILED], overwrite=True) as files:
        for path, reason in [*plan.refused, *failed]:
            files[FAILED].write(encoded_json({"path": path, "reason": reason}) + "\n")
    return Result(
        len(plan.tasks) - len(failed), plan.done, plan.skipped, len(plan.refused) + len(failed), len(plan.tasks)
    )


def _record_or_verify_options(out: Path, options: ImageOptions, overwrite: bool) -> int:
    """Write the settings to `out`, or compare with those there; return since when (in ns) they have been in use.

    Raises `UserError` for a folder with files made with other settings or by another program.
    """
    path = out / SETTINGS
    settings = options.settings()
    if not overwrite and path.exists():
        changed = _changed_settings(_read_settings(path), settings)
        if changed:
            raise UserError(
                f"{out} contains images made with other settings ({changed}); give another --out, or --overwrite"
            )
        return path.stat().st_mtime_ns
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} contains files that this tool did not make; give another --out, or --overwrite")
    with WholeFiles(out, [SETTINGS], overwrite=True) as files:
        write_json(files[SETTINGS], settings)
    return path.stat().st_mtime_ns


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError:
        return {}


def _changed_settings(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{name} was {old.get(name)}, is now {new[name]}" for name in new if old.get(name) != new[name])


def _plan(source: Path, out: Path, options: ImageOptions, since: int, allow_outside: bool) -> Plan:
    plan = Plan()
    sources: dict[str, str] = {}
    for path in progress(_files(source, allow_outside, plan), "scan", "file"):
        if not _is_image(path):
            plan.skipped += 1
            continue
        target = str(out / _target_name(os.path.relpath(path, source), FORMATS[options.format]))
        first = sources.setdefault(target, path)
        if first != path:
            plan.refused.append((path, f"its output would have the same name as that of {first}"))
        elif _is_done(path, target, since):
            plan.done += 1
        else:
            plan.tasks.append(ImageTask(path, target, options))
    return plan


def _files(source: Path, allow_outside: bool, plan: Plan) -> Iterator[str]:
    """Yield all files below `source` in order; links that lead outside are followed, or added to `plan.refused`."""
    entered: set[str] = set()
    for folder, folders, files in os.walk(source, followlinks=allow_outside):
        # A link to a parent folder would never end.
        if os.path.realpath(folder) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(folder))
        folders.sort()
        links = [os.path.join(folder, name) for name in folders if os.path.islink(os.path.join(folder, name))]
        for path in [*links, *(os.path.join(folder, name) for name in sorted(files) if not name.startswith("."))]:
            if not allow_outside and os.path.islink(path) and not Path(path).resolve().is_relative_to(source):
                plan.refused.append((path, "a link that leads out of --input (see --allow_outside)"))
            elif path not in links:
                yield path


def _is_image(path: str) -> bool:
    """Return whether a file is an image, by its suffix or, without a known one, by the magic bytes of DICOM."""
    if path.lower().endswith(_IMAGE_SUFFIXES + _DICOM_SUFFIXES):
        return True
    if os.path.basename(path) == _INDEX_FILE or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return is_dicom(path, file.read(HEAD_BYTES))


def _target_name(name: str, suffix: str) -> str:
    """Replace the suffix of an image; DICOM files often have dots in their names but no suffix."""
    stem, old = os.path.splitext(name)
    return (stem if old.lower() in _IMAGE_SUFFIXES + _DICOM_SUFFIXES else name) + suffix


def _is_done(path: str, target: str, since: int) -> bool:
    """Return whether `target` is newer than the settings and than its source."""
    try:
        return os.stat(target).st_mtime_ns >= max(since, os.stat(path).st_mtime_ns)
    except OSError:
        return False

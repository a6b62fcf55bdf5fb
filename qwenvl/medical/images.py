"""Owns the command that turns a folder of deep or DICOM pictures into 8-bit ones, and can be started again."""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenvl.data.media.dicom import HEAD_BYTES, is_dicom
from qwenvl.data.media.gray import RANGES, GrayRange
from qwenvl.data.media.images import MAX_IMAGE_MEGAPIXELS
from qwenvl.errors import UserError
from qwenvl.medical.convert_image import FITS, FORMATS, ImageOptions, ImageTask, convert_image
from qwenvl.utils.cli import (
    ToolParser,
    WholeFiles,
    default_workers,
    encoded_json,
    in_parallel,
    peak_memory_mib,
    positive_int,
    print_summary,
    progress,
    write_json,
)

SETTINGS, FAILED = "prepare_images.json", "failed.jsonl"
SOME_FAILED = 1
_PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
_DICOM_SUFFIXES = (".dcm", ".dicom")
_INDEX_FILE = "DICOMDIR"
_DEFAULTS = ImageOptions()


@dataclass
class Plan:
    """What a run has to do: the files to convert, those refused as (path, reason), and the number of the others."""

    tasks: list[ImageTask] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    skipped: int = 0


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser(
        "Turn DICOM and 16-bit pictures into 8-bit PNG or JPEG files of the same names in another folder. Originals "
        "are only read. Started again it goes on where it stopped. Exit code 1: some files failed, see failed.jsonl."
    )
    parser.add_argument("--input", required=True, help="folder with the originals, read with all folders in it")
    parser.add_argument("--out", required=True, help="folder for the pictures, beside the originals or elsewhere")
    parser.add_argument(
        "--range",
        choices=RANGES,
        default="window",
        help="gray levels shown: all that occur, between percentiles, the file's VOI LUT or window (all that occur "
        "where it has none), or all that its bits can hold; pictures of 8 bits stay as they are",
    )
    parser.add_argument("--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="with --range percentile")
    parser.add_argument("--window", nargs=2, type=float, metavar=("CENTER", "WIDTH"), help="with --range window")
    parser.add_argument("--bits", type=positive_int, help="with --range bits: the depth, if not the file's own")
    parser.add_argument("--size", type=positive_int, help="shrink to this many pixels, with the aspect kept")
    parser.add_argument("--fit", choices=FITS, help="with --size: the side that gets it; the shortest if not given")
    parser.add_argument("--format", choices=list(FORMATS), default="png", help="without or with little loss")
    parser.add_argument("--quality", type=positive_int, help="with --format jpg: 1 to 100, 95 if not given")
    parser.add_argument("--frame", type=int, help="the frame to take from files with several, from 0")
    parser.add_argument(
        "--max_image_megapixels",
        type=positive_int,
        default=MAX_IMAGE_MEGAPIXELS,
        help="refuse larger images, in units of 1,048,576 pixels",
    )
    parser.add_argument("--allow_outside", action="store_true", help="follow links that lead out of --input")
    parser.add_argument("--overwrite", action="store_true", help="convert everything again, whatever is in --out")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="number of processes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0, or 1 when files failed. Raises `UserError` for wrong options."""
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    options = _options(args)
    source, out = _folders(args)
    since = _settle(out, options, args.overwrite)
    plan = _plan(source, out, options, since, args.allow_outside)
    reasons = progress(in_parallel(convert_image, plan.tasks, args.workers), "pictures", "file", len(plan.tasks))
    failed = [(task.source, reason) for task, reason in zip(plan.tasks, reasons, strict=True) if reason]
    with WholeFiles(out, [FAILED], overwrite=True) as files:
        for path, reason in [*plan.refused, *failed]:
            files[FAILED].write(encoded_json({"path": path, "reason": reason}) + "\n")
    seconds = time.monotonic() - started
    rows = [
        ("converted", len(plan.tasks) - len(failed)),
        ("already there", plan.done),
        ("no pictures", plan.skipped),
        (f"failed (see {FAILED})", len(plan.refused) + len(failed)),
        ("files a second", f"{len(plan.tasks) / max(seconds, 1e-9):.1f}"),
        ("peak memory of a process, MiB", peak_memory_mib()),
    ]
    print_summary(f"{source} -> {out}", rows)
    return SOME_FAILED if plan.refused or failed else 0


def _options(args: argparse.Namespace) -> ImageOptions:
    """Return the options; raises `UserError` for one that would have no effect or makes no sense."""
    for given, needed, name in (
        (args.percentiles, args.range == "percentile", "--percentiles needs --range percentile"),
        (args.window, args.range == "window", "--window needs --range window"),
        (args.bits, args.range == "bits", "--bits needs --range bits"),
        (args.fit, args.size is not None, "--fit needs --size"),
        (args.quality, args.format == "jpg", "--quality needs --format jpg"),
    ):
        if given is not None and not needed:
            raise UserError(f"{name}: alone it would do nothing; give both or none")
    if args.frame is not None and args.frame < 0:
        raise UserError(f"--frame {args.frame} is below 0; frames are counted from 0")
    if args.quality is not None and args.quality > 100:
        raise UserError(f"--quality {args.quality} is above 100; give 1 to 100")
    gray_range = GrayRange(
        kind=args.range,
        percentiles=tuple(args.percentiles or GrayRange().percentiles),
        window=tuple(args.window) if args.window else None,
        bits=args.bits,
    )
    return ImageOptions(
        gray_range=gray_range,
        size=args.size,
        fit=args.fit or _DEFAULTS.fit,
        format=args.format,
        quality=args.quality or _DEFAULTS.quality,
        frame=args.frame,
        max_image_megapixels=args.max_image_megapixels,
    )


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    source, out = Path(args.input).resolve(), Path(args.out).resolve()
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give --input the folder with the originals")
    if source == out or source in out.parents or out in source.parents:
        raise UserError(f"--out {out} and --input {source} lie in one another; give a folder elsewhere")
    return source, out


def _settle(out: Path, options: ImageOptions, overwrite: bool) -> int:
    """Note the settings in `out`; return since when (ns) pictures there were made with them.

    Raises `UserError` for a folder with files that other settings or another program made.
    """
    path = out / SETTINGS
    settings = options.settings()
    if not overwrite and path.exists():
        changed = _changed(_read_settings(path), settings)
        if changed:
            raise UserError(
                f"{out} holds pictures made with other settings ({changed}); give another --out, or --overwrite"
            )
        return path.stat().st_mtime_ns
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} holds files that this tool did not make; give another --out, or --overwrite")
    with WholeFiles(out, [SETTINGS], overwrite=True) as files:
        write_json(files[SETTINGS], settings)
    return path.stat().st_mtime_ns


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    return settings if isinstance(settings, dict) else {}


def _changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(f"{name} {old.get(name)} then, {new[name]} now" for name in new if old.get(name) != new[name])


def _plan(source: Path, out: Path, options: ImageOptions, since: int, allow_outside: bool) -> Plan:
    plan = Plan()
    owners: dict[str, str] = {}
    for path in progress(_files(source, allow_outside, plan), "looking", "file"):
        if not _is_picture(path):
            plan.skipped += 1
            continue
        target = str(out / _target_name(os.path.relpath(path, source), FORMATS[options.format]))
        owner = owners.setdefault(target, path)
        if owner != path:
            plan.refused.append((path, f"its picture would have the same name as that of {owner}"))
        elif _is_done(path, target, since):
            plan.done += 1
        else:
            plan.tasks.append(ImageTask(path, target, options))
    return plan


def _files(source: Path, allow_outside: bool, plan: Plan) -> Iterator[str]:
    """Yield all files below `source` in order; links that lead outside are followed, or noted as refused."""
    entered: set[str] = set()
    for folder, folders, files in os.walk(source, followlinks=allow_outside):
        # A link to a folder above itself would never end.
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


def _is_picture(path: str) -> bool:
    """Tell by the name, or where it says nothing by the mark of DICOM files."""
    if path.lower().endswith(_PICTURE_SUFFIXES + _DICOM_SUFFIXES):
        return True
    if os.path.basename(path) == _INDEX_FILE or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return is_dicom(path, file.read(HEAD_BYTES))


def _target_name(name: str, suffix: str) -> str:
    """Return the name with the suffix of a picture replaced; DICOM files often have none, but dots in their names."""
    stem, old = os.path.splitext(name)
    return (stem if old.lower() in _PICTURE_SUFFIXES + _DICOM_SUFFIXES else name) + suffix


def _is_done(path: str, target: str, since: int) -> bool:
    """Tell whether `target` was made after the settings were noted and after its source last changed."""
    try:
        return os.stat(target).st_mtime_ns >= max(since, os.stat(path).st_mtime_ns)
    except OSError:
        return False

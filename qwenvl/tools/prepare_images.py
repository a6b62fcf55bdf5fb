"""Convert a folder of DICOM and 16-bit images to 8-bit PNG or JPEG files."""

import argparse
import sys
import time
from pathlib import Path

from qwenvl.data.media.gray import RANGES, GrayRange
from qwenvl.data.media.images import MAX_IMAGE_MEGAPIXELS
from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.medical.convert_image import FITS, FORMATS, ImageOptions
from qwenvl.medical.images import FAILED, convert_folder
from qwenvl.utils.cli import ToolParser, default_workers, peak_memory_mib, positive_int, print_summary

SOME_FAILED = 1
_DEFAULTS = ImageOptions()


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser(
        "Convert DICOM and 16-bit images to 8-bit PNG or JPEG files with the same names in another folder. Originals "
        "are only read. A second run continues an interrupted one. Exit code 1: some files failed, see failed.jsonl."
    )
    parser.add_argument("--input", required=True, help="folder with the originals, read with all its subfolders")
    parser.add_argument("--out", required=True, help="folder for the images, neither inside --input nor around it")
    parser.add_argument(
        "--range",
        choices=RANGES,
        default="window",
        help="gray levels from black to white. minmax: all that occur; percentile: those between --percentiles; "
        "window: the VOI LUT or window of the file, or minmax without one; bits: the full range of the bit depth. "
        "Images of 8 bits are not changed",
    )
    parser.add_argument("--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="with --range percentile")
    parser.add_argument("--window", nargs=2, type=float, metavar=("CENTER", "WIDTH"), help="with --range window")
    parser.add_argument("--bits", type=positive_int, help="with --range bits: the bit depth, if not that of the file")
    parser.add_argument("--size", type=positive_int, help="shrink to this many pixels and keep the aspect ratio")
    parser.add_argument("--fit", choices=FITS, help="with --size: the side that is measured; shortest if not given")
    parser.add_argument("--format", choices=list(FORMATS), default="png", help="png: lossless; jpg: smaller")
    parser.add_argument("--quality", type=positive_int, help="with --format jpg: 1 to 100, 95 if not given")
    parser.add_argument("--frame", type=int, help="the frame to use of files with several, counted from 0")
    parser.add_argument(
        "--max_image_megapixels",
        type=positive_int,
        default=MAX_IMAGE_MEGAPIXELS,
        help="refuse larger images, in units of 1,048,576 pixels",
    )
    parser.add_argument("--allow_outside", action="store_true", help="follow links that lead out of --input")
    parser.add_argument("--overwrite", action="store_true", help="convert all images again, whatever is in --out")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="number of processes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0, or 1 when files failed. Raises `UserError` for wrong options."""
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    options = _options(args)
    source, out = _folders(args)
    result = convert_folder(source, out, options, args.overwrite, args.allow_outside, args.workers)
    seconds = time.monotonic() - started
    rows = [
        ("converted", result.converted),
        ("already converted", result.done),
        ("not images", result.skipped),
        (f"failed (see {FAILED})", result.failed),
        ("files per second", f"{result.tried / max(seconds, 1e-9):.1f}"),
        ("peak memory of a process, MiB", peak_memory_mib()),
    ]
    print_summary(f"{source} -> {out}", rows)
    return SOME_FAILED if result.failed else 0


def _options(args: argparse.Namespace) -> ImageOptions:
    """Return the options; raises `UserError` for one that would have no effect or is out of range."""
    for given, needed, name in (
        (args.percentiles, args.range == "percentile", "--percentiles needs --range percentile"),
        (args.window, args.range == "window", "--window needs --range window"),
        (args.bits, args.range == "bits", "--bits needs --range bits"),
        (args.fit, args.size is not None, "--fit needs --size"),
        (args.quality, args.format == "jpg", "--quality needs --format jpg"),
    ):
        if given is not None and not needed:
            raise UserError(f"{name}: it has no effect alone; give both or none")
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
        raise UserError(f"{source}: no such folder; correct --input")
    if source == out or source in out.parents or out in source.parents:
        raise UserError(f"--out {out} and --input {source} overlap; give another --out")
    return source, out


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Convert MIMIC-CXR to annotation files."""

import argparse
import sys
import time
from pathlib import Path

from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.medical.mimic.prepare import MimicSource, convert_mimic, find_image_root
from qwenvl.medical.mimic.studies import PRIORS, MimicOptions
from qwenvl.medical.mimic.tables import LABEL_TABLES
from qwenvl.medical.reports import MIMIC_MARK
from qwenvl.tools.report_flags import add_image_flags, add_report_flags, report_options, view_options
from qwenvl.utils.cli import ToolParser, default_workers, peak_memory_mib, positive_int, print_summary


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Convert MIMIC-CXR-JPG and its reports to annotation files. Originals are only read.")
    parser.add_argument("--jpg_root", required=True, help="folder of MIMIC-CXR-JPG: the CSVs and files/p10 to p19")
    parser.add_argument("--reports", help="mimic-cxr-reports.zip, or the folder unpacked from it")
    parser.add_argument("--llava_rad", nargs="+", metavar="JSON", help="LLaVA-Rad annotations, in place of --reports")
    parser.add_argument("--split_csv", help="the split table, if not in --jpg_root")
    parser.add_argument("--metadata_csv", help="the metadata table, if not in --jpg_root")
    parser.add_argument("--labels", choices=LABEL_TABLES, help="keep the labels of this table in each record")
    parser.add_argument("--labels_csv", help="the label table, if not in --jpg_root")
    parser.add_argument(
        "--prior",
        choices=PRIORS,
        default="none",
        help="include the patient's last earlier study of the same split: its report, its frontal image, or both",
    )
    add_image_flags(parser, out="data/mimic", views="frontal")
    add_report_flags(parser)
    parser.add_argument(
        "--paths",
        choices=("absolute", "relative"),
        default="absolute",
        help="how records name images; relative: to --jpg_root",
    )
    parser.add_argument("--no_file_check", action="store_true", help="do not check that each image file exists")
    parser.add_argument("--allow_outside", action="store_true", help="accept --llava_rad images outside --jpg_root")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="number of processes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0. Raises `UserError` for what the user has to correct."""
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    options = _options(args)
    source = MimicSource(
        root=Path(args.jpg_root),
        reports=args.reports,
        llava_rad=tuple(args.llava_rad or ()),
        labels=args.labels,
        split_csv=args.split_csv,
        metadata_csv=args.metadata_csv,
        labels_csv=args.labels_csv,
    )
    result = convert_mimic(
        source,
        Path(args.out),
        options,
        overwrite=args.overwrite,
        allow_outside=args.allow_outside,
        workers=args.workers,
    )
    seconds = time.monotonic() - started
    speed = [("seconds", f"{seconds:.1f}"), ("studies per second", round(result.studies / max(seconds, 1e-9)))]
    print_summary(
        f"MIMIC-CXR -> {args.out}",
        [*result.summary, *speed, ("peak memory of a process, MiB", peak_memory_mib())],
    )
    return 0


def _options(args: argparse.Namespace) -> MimicOptions:
    if bool(args.llava_rad) == bool(args.reports):
        raise UserError("give either --reports or --llava_rad: one of them is needed for the texts")
    if args.llava_rad and (args.views == "study" or args.prior != "none" or args.target != "findings" or args.labels):
        raise UserError(
            "--llava_rad has findings of single images: give --reports for --views study, --prior, --labels or --target"
        )
    if args.llava_rad and (args.split_csv or args.metadata_csv):
        raise UserError("--llava_rad uses no tables: leave --split_csv and --metadata_csv out")
    if args.allow_outside and not args.llava_rad:
        raise UserError("--allow_outside only affects --llava_rad: leave it out, or give --llava_rad")
    if args.labels_csv and not args.labels:
        raise UserError("--labels_csv has no effect without --labels, which names the table: give both")
    root = Path(args.jpg_root).resolve()
    images = find_image_root(root)
    prefix = str(images) if args.paths == "absolute" else images.relative_to(root).as_posix()
    return MimicOptions(
        image_root=str(images),
        prefix=prefix,
        report=report_options(args, MIMIC_MARK),
        views=view_options(args),
        prior=args.prior,
        check_files=not args.no_file_check,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Convert MIMIC-CXR to annotation files."""

import argparse
import sys
import time
from pathlib import Path

from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.medical.mimic.prepare import MimicSource, convert_mimic
from qwenvl.medical.mimic.studies import PRIORS, MimicOptions
from qwenvl.medical.mimic.tables import LABEL_TABLES
from qwenvl.medical.records import add_report_options, report_options
from qwenvl.medical.reports import MIMIC_MARK
from qwenvl.medical.split_files import add_output_options, max_images
from qwenvl.utils.cli import ToolParser, default_workers, peak_memory_mib, positive_int, print_summary


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Turn MIMIC-CXR-JPG and its reports into training files. Originals are only read.")
    parser.add_argument("--jpg_root", required=True, help="folder of MIMIC-CXR-JPG: the CSVs and files/p10 to p19")
    parser.add_argument("--reports", help="mimic-cxr-reports.zip, or the folder that it was unpacked to")
    parser.add_argument("--llava_rad", nargs="+", metavar="JSON", help="LLaVA-Rad annotation files, instead of reports")
    parser.add_argument("--split_csv", help="the split table, if not in --jpg_root")
    parser.add_argument("--metadata_csv", help="the metadata table, if not in --jpg_root")
    parser.add_argument("--labels", choices=LABEL_TABLES, help="keep the labels of this table in each record")
    parser.add_argument("--labels_csv", help="the label table, if not in --jpg_root")
    parser.add_argument(
        "--prior",
        choices=PRIORS,
        default="none",
        help="tell the patient's last earlier study of the same split: its report, its frontal image, or both",
    )
    add_output_options(parser, out="data/mimic", views="frontal")
    add_report_options(parser)
    parser.add_argument("--paths", choices=("absolute", "relative"), default="absolute", help="relative to --jpg_root")
    parser.add_argument("--no_file_check", action="store_true", help="do not look whether each image file is there")
    parser.add_argument("--allow_outside", action="store_true", help="take --llava_rad images outside --jpg_root too")
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
    speed = [("seconds", f"{seconds:.1f}"), ("studies a second", round(result.studies / max(seconds, 1e-9)))]
    print_summary(
        f"MIMIC-CXR -> {args.out}",
        [*result.summary, *speed, ("peak memory of a process, MiB", peak_memory_mib())],
    )
    return 0


def _options(args: argparse.Namespace) -> MimicOptions:
    if bool(args.llava_rad) == bool(args.reports):
        raise UserError("give either --reports or --llava_rad: one of them has the texts")
    if args.llava_rad and (args.views == "study" or args.prior != "none" or args.target != "findings" or args.labels):
        raise UserError(
            "--llava_rad has findings of single images: give --reports for --views study, --prior, --labels or --target"
        )
    if args.llava_rad and (args.split_csv or args.metadata_csv):
        raise UserError("--llava_rad needs no tables: leave --split_csv and --metadata_csv out")
    if args.allow_outside and not args.llava_rad:
        raise UserError("--allow_outside is about paths in --llava_rad files: without them leave it out")
    if args.labels_csv and not args.labels:
        raise UserError("--labels_csv says where the table is, --labels which one it is: give both")
    root = Path(args.jpg_root).resolve()
    images = next((folder for folder in (root / "files", root) if any(folder.glob("p[0-9][0-9]"))), None)
    if images is None:
        found = ", ".join(sorted(path.name for path in root.glob("*"))[:5]) or "nothing"
        raise UserError(f"{root}: no folders p10 to p19 in it or in its folder files; found {found}")
    prefix = str(images) if args.paths == "absolute" else images.relative_to(root).as_posix()
    return MimicOptions(
        image_root=str(images),
        prefix=prefix,
        report=report_options(args, MIMIC_MARK),
        views=args.views,
        max_images=max_images(args),
        prior=args.prior,
        check_files=not args.no_file_check,
    )


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

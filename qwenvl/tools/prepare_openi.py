"""Convert IU X-Ray (Open-i) to annotation files."""

import argparse
import sys
from pathlib import Path

from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.medical.openi.prepare import OpeniOptions, OpeniSource, SplitShares, convert_openi
from qwenvl.medical.records import add_report_options, report_options
from qwenvl.medical.reports import OPENI_MARK
from qwenvl.medical.split_files import add_output_options, max_images
from qwenvl.utils.cli import ToolParser, print_summary


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Turn IU X-Ray (Open-i) reports and films into training files. Originals are only read.")
    parser.add_argument("--reports", required=True, help="NLMCXR_reports.tgz, or the folder unpacked from it")
    parser.add_argument("--images", required=True, help="NLMCXR_png.tgz (unpacked to --out/films), or a folder of PNGs")
    parser.add_argument("--projections", help="indiana_projections.csv of the Kaggle edition, which tells the views")
    parser.add_argument("--valid_percent", type=float, default=10.0, help="share of the patients for validation")
    parser.add_argument("--test_percent", type=float, default=20.0, help="share of the patients for the test")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same split")
    add_output_options(parser, out="data/openi", views="study")
    add_report_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0. Raises `UserError` for what the user has to correct."""
    args = build_parser().parse_args(argv)
    options, out = _options(args), Path(args.out)
    source = OpeniSource(args.reports, args.images, args.projections)
    shares = SplitShares(args.valid_percent, args.test_percent, args.seed)
    print_summary(f"IU X-Ray -> {out}", convert_openi(source, out, options, shares, args.overwrite))
    return 0


def _options(args: argparse.Namespace) -> OpeniOptions:
    shares = (args.valid_percent, args.test_percent)
    if min(shares) < 0 or not sum(shares) < 100:
        raise UserError(f"--valid_percent {shares[0]:g} and --test_percent {shares[1]:g} leave nothing to train on")
    if args.views == "frontal" and not args.projections:
        raise UserError("Open-i does not say which films are frontal: give --projections, or --views study or image")
    return OpeniOptions(report_options(args, OPENI_MARK), args.views, max_images(args))


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Convert IU X-Ray (Open-i) to annotation files."""

import sys
from pathlib import Path

from qwenvl.errors import exit_on_user_error
from qwenvl.medical.openi.prepare import OpeniOptions, OpeniSource, SplitShares, convert_openi
from qwenvl.medical.reports import OPENI_MARK
from qwenvl.tools.report_flags import add_image_flags, add_report_flags, report_options, view_options
from qwenvl.utils.cli import ToolParser, print_summary


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Convert IU X-Ray (Open-i) reports and images to annotation files. Originals are only read.")
    parser.add_argument("--reports", required=True, help="NLMCXR_reports.tgz, or the folder unpacked from it")
    parser.add_argument("--images", required=True, help="NLMCXR_png.tgz (unpacked to --out/films), or a folder of PNGs")
    parser.add_argument("--projections", help="indiana_projections.csv of the Kaggle edition, with the views")
    parser.add_argument("--valid_percent", type=float, default=10.0, help="percentage of the patients for validation")
    parser.add_argument("--test_percent", type=float, default=20.0, help="percentage of the patients for the test")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same split")
    add_image_flags(parser, out="data/openi", views="study")
    add_report_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0. Raises `UserError` for what the user has to correct."""
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    options = OpeniOptions(report_options(args, OPENI_MARK), view_options(args))
    source = OpeniSource(args.reports, args.images, args.projections)
    shares = SplitShares(args.valid_percent, args.test_percent, args.seed)
    print_summary(f"IU X-Ray -> {out}", convert_openi(source, out, options, shares, args.overwrite))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

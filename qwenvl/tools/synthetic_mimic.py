"""Build a synthetic MIMIC-CXR tree to try all commands on."""

import sys
from pathlib import Path

from qwenvl.errors import exit_on_user_error, exit_unless_installed

if __name__ == "__main__":
    exit_unless_installed("PIL", "tqdm")

from qwenvl.utils.cli import ToolParser, positive_int, print_summary


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Build a synthetic MIMIC-CXR tree, to try the tools without the real data.")
    parser.add_argument("--out", required=True, help="a new or empty folder")
    parser.add_argument("--studies", type=positive_int, default=200, help="number of studies")
    parser.add_argument("--film_size", type=positive_int, default=512, help="height and width of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same tree")
    parser.add_argument("--zip_reports", action="store_true", help="reports as mimic-cxr-reports.zip, not as files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build the tree and print its folder; returns 0."""
    args = build_parser().parse_args(argv)
    # Only the work needs Pillow: `--help` is answered without it.
    from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic

    options = SyntheticOptions(args.studies, args.seed, args.film_size, args.zip_reports)
    root = build_synthetic_mimic(Path(args.out), options)
    print_summary("synthetic MIMIC-CXR", [("studies", args.studies), ("folder", root)])
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

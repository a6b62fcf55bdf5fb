"""Parse the flags that the commands for radiology reports share."""

import argparse
import re

from qwenvl.medical.records import CONTEXT, MISSING_CONTEXT, TARGETS, ReportOptions
from qwenvl.medical.reports import DEID_POLICIES, WHITE_SPACE_POLICIES, TextPolicy
from qwenvl.medical.views import DEFAULT_MAX_IMAGES, VIEWS, ViewOptions
from qwenvl.utils.cli import ToolParser, positive_int


def add_report_flags(parser: ToolParser) -> None:
    """Add the flags that decide what a conversation contains."""
    group = parser.add_argument_group("text")
    group.add_argument("--target", choices=list(TARGETS), default="findings", help="section(s) that the model writes")
    group.add_argument(
        "--context",
        nargs="*",
        choices=list(CONTEXT),
        default=["indication"],
        help="sections shown to the model with the images; the history replaces a missing indication; give no value "
        "for no context",
    )
    group.add_argument(
        "--missing_context",
        choices=MISSING_CONTEXT,
        default="omit",
        help="omit: leave a missing context section out; na: write N/A",
    )
    group.add_argument("--prompt", help="the question after images and context, instead of the default of --target")
    group.add_argument(
        "--deid",
        choices=DEID_POLICIES,
        default="keep",
        help="what to do with a de-identification mark in the target: keep it, remove it, remove its sentence, or drop "
        "the study; in the context the mark is kept (keep) or removed",
    )
    group.add_argument(
        "--white_space",
        choices=WHITE_SPACE_POLICIES,
        default="collapse",
        help="write the text in one line, with one line per paragraph or list item, or with the report's own lines",
    )
    group.add_argument("--min_words", type=positive_int, default=1, help="drop studies with a shorter target")
    group.add_argument("--max_words", type=positive_int, help="drop studies with a longer target")


def report_options(args: argparse.Namespace, mark: re.Pattern[str]) -> ReportOptions:
    """Return the options of parsed arguments; `mark` matches what de-identification removed. Raises `UserError`."""
    return ReportOptions(
        target=args.target,
        context=tuple(args.context),
        missing_context=args.missing_context,
        policy=TextPolicy(args.white_space, args.deid, mark),
        min_words=args.min_words,
        max_words=args.max_words,
        prompt=args.prompt,
    )


def add_image_flags(parser: ToolParser, out: str, views: str) -> None:
    """Add the flags on the choice of images and the output folder, with `out` and `views` as defaults."""
    group = parser.add_argument_group("images and output")
    group.add_argument(
        "--views",
        choices=VIEWS,
        default=views,
        help="one frontal image per study, one record per image, or the whole study with frontal images first",
    )
    group.add_argument(
        "--max_images",
        type=positive_int,
        help=f"with --views study: most images of a record, {DEFAULT_MAX_IMAGES} if not given",
    )
    group.add_argument(
        "--out", default=out, help="folder for the annotation files, the list of dropped studies and the counts"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")


def view_options(args: argparse.Namespace) -> ViewOptions:
    """Return the choice of images of parsed arguments; raises `UserError` for a flag that has no effect."""
    return ViewOptions(args.views, args.max_images)

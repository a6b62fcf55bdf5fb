"""Tests of the flags that the commands for radiology reports share."""

import re

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.records import ReportOptions
from qwenvl.medical.reports import MIMIC_MARK, TextPolicy
from qwenvl.medical.views import ViewOptions
from qwenvl.tools.report_flags import add_image_flags, add_report_flags, report_options, view_options
from qwenvl.utils.cli import ToolParser


@pytest.fixture
def parser() -> ToolParser:
    parser = ToolParser("a command")
    add_image_flags(parser, out="data", views="image")
    add_report_flags(parser)
    return parser


def test_the_defaults_are_those_of_the_options(parser: ToolParser):
    args = parser.parse_args([])
    assert report_options(args, MIMIC_MARK) == ReportOptions()
    assert (view_options(args), args.out, args.overwrite) == (ViewOptions("image"), "data", False)


def test_each_flag_sets_its_option(parser: ToolParser):
    text = [
        "--target",
        "both",
        "--context",
        "technique",
        "--missing_context",
        "na",
        "--deid",
        "study",
        "--prompt",
        "Go.",
    ]
    limits = ["--white_space", "keep", "--min_words", "2", "--max_words", "9", "--views", "study", "--max_images", "3"]
    args, mark = parser.parse_args([*text, *limits]), re.compile("X")
    policy = TextPolicy("keep", "study", mark)
    assert report_options(args, mark) == ReportOptions("both", ("technique",), "na", policy, 2, 9, "Go.")
    assert view_options(args) == ViewOptions("study", 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_images", "0"], "'0' is not a whole number above 0"),
        (["--target", "all"], "invalid choice: 'all'"),
        (["--context", "age"], "invalid choice: 'age'"),
    ],
)
def test_values_that_a_flag_does_not_know_are_refused(parser: ToolParser, flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        parser.parse_args(flags)

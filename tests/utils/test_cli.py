"""Tests of what the command-line tools share."""

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.cli import ToolParser, positive_int, print_summary


def test_invalid_arguments_are_reported_in_one_line():
    parser = ToolParser("x")
    parser.add_argument("--size", type=positive_int)
    for arguments in (["--size", "0"], ["--size", "x"], ["--unknown"]):
        with pytest.raises(UserError, match="--help") as error:
            parser.parse_args(arguments)
        assert "\n" not in str(error.value)


def test_the_summary_is_printed_as_a_table_with_thousands_separators(capsys: pytest.CaptureFixture[str]):
    print_summary("title", [("studies", 1234567), ("seconds", "1.5")])
    assert capsys.readouterr().out == "title\n  studies  1,234,567\n  seconds        1.5\n"

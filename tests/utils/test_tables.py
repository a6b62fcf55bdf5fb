"""Tests of the text tables."""

import pytest

from qwenvl.utils.tables import format_summary, format_table


def test_the_first_column_is_left_aligned_and_the_others_right_aligned_below_a_header():
    table = format_table([("name", "count", "rate"), ("a long name", "1", "0.25"), ("b", "1,000", "-")])
    assert table.splitlines() == [
        "name         count  rate",
        "-----------  -----  ----",
        "a long name      1  0.25",
        "b            1,000     -",
    ]


def test_columns_can_be_left_aligned_without_header_and_end_without_spaces():
    table = format_table([("a", "long cell"), ("bb", "c")], align="<", has_header=False, indent=1)
    assert table.splitlines() == [" a   long cell", " bb  c"]


def test_the_last_alignment_applies_to_all_further_columns():
    assert format_table([("a", "b", "c"), ("11", "22", "33")], align=">", has_header=False) == " a   b   c\n11  22  33"


def test_rows_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="argument 2"):
        format_table([("a", "b"), ("c",)])


def test_a_summary_has_thousands_separators():
    assert format_summary("title", [("studies", 1234567), ("seconds", "1.5")]) == (
        "title\n  studies  1,234,567\n  seconds        1.5"
    )


def test_a_summary_without_rows_is_its_title():
    assert format_summary("title", []) == "title"

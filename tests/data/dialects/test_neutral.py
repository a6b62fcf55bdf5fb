"""Tests of what the readers of all dialects share."""

import pytest

from qwenvl.data.dialects.neutral import InvalidRecordError, UnreadMediumError, format_value, is_missing


@pytest.mark.parametrize("value", [None, "", [], {}, float("nan"), {"path": None, "bytes": None}])
def test_what_a_table_puts_into_an_empty_cell_is_missing(value: object):
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, False, " ", [None], {"path": "a"}, b"", 0.0])
def test_a_value_that_says_something_is_not_missing(value: object):
    assert not is_missing(value)


def test_a_value_is_formatted_in_one_line_of_at_most_60_characters():
    assert format_value({"a": 1}) == "{'a': 1}"
    assert "\n" not in format_value("a\nb")
    for value in ("x" * 10**6, list(range(10**5)), {"key": "x" * 100}):
        assert len(format_value(value)) <= 60


def test_a_value_that_python_cannot_print_is_named_by_its_type():
    nested: list = []
    for _ in range(10**5):
        nested = [nested]
    assert format_value(nested) == "a list"
    assert format_value(10**5000) == "a int"


def test_an_invalid_record_carries_its_reason_and_the_path_at_fault():
    error = InvalidRecordError("no such file", "/a.png")
    assert (error.reason, error.path, str(error)) == ("no such file", "/a.png", "no such file")
    unread = UnreadMediumError("img", "not read")
    assert (unread.key, unread.reason, unread.path) == ("img", "not read", None)

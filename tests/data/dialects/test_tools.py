"""Tests of the functions that a record offers and of the calls of them."""

import json
from typing import Any

import pytest

from qwenvl.data.dialects.neutral import InvalidRecordError
from qwenvl.data.dialects.tools import read_calls, read_tools

INNER = {"name": "measure", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": INNER}


@pytest.mark.parametrize(
    "value", [[WRAPPED], [INNER], INNER, json.dumps([WRAPPED]), [json.dumps(INNER)], [{"function": INNER}]]
)
def test_functions_in_every_notation_are_one_json_list_in_the_form_of_openai(value: Any):
    assert json.loads(read_tools(value)) == [WRAPPED]


@pytest.mark.parametrize("value", [None, "", [], "[]"])
def test_no_functions_are_none(value: Any):
    assert read_tools(value) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "`tools` is '{', which is not JSON"),
        (3, "`tools` is 3, expected a list of functions"),
        ([{"parameters": {}}], "a tool is .*expected an object with the `name` of a function"),
        ([{"name": ""}], "a tool is .*expected an object with the `name` of a function"),
    ],
)
def test_functions_that_cannot_be_read_are_refused(value: Any, reason: str):
    with pytest.raises(InvalidRecordError, match=reason):
        read_tools(value)


@pytest.mark.parametrize("arguments", [{"side": "left"}, '{"side": "left"}'])
def test_the_arguments_of_a_call_stay_an_object_or_its_text(arguments: Any):
    call = {"name": "measure", "arguments": arguments}
    wrapped = {"type": "function", "function": call}
    for value in (call, [call], json.dumps(call), {"function": call}):
        assert read_calls(value, 1) == [wrapped]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("{", "the arguments of a tool call of turn 1 is '{', which is not JSON"),
        (None, "a tool call of turn 1 has the arguments None"),
        ([1], "a tool call of turn 1 has the arguments"),
    ],
)
def test_arguments_that_are_no_object_are_refused_with_the_turn(arguments: Any, reason: str):
    with pytest.raises(InvalidRecordError, match=reason):
        read_calls([{"name": "measure", "arguments": arguments}], 1)


def test_a_turn_without_calls_has_none():
    assert read_calls(None, 0) == read_calls([], 0) == []

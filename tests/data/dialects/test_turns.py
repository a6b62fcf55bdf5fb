"""Tests of reading one turn of any dialect."""

import json
from typing import Any

import pytest

from qwenvl.data.dialects.neutral import InvalidRecordError
from qwenvl.data.dialects.parts import PartMedia
from qwenvl.data.dialects.turns import ROLES, join_calls, read_turn
from qwenvl.data.records import Turn

CALL = {"type": "function", "function": {"name": "measure", "arguments": {}}}
CALLS = json.dumps([CALL])


def read(**raw: Any) -> Turn:
    """Return the turn with number 1."""
    return read_turn(raw, 1, PartMedia(), [])


@pytest.mark.parametrize("name", [name for name in ROLES if "call" not in name])
def test_each_name_of_a_role_is_read_under_both_pairs_of_keys(name: str):
    for turn in (read(**{"from": name, "value": "Hm."}), read(role=name, content="Hm.")):
        assert turn == Turn(ROLES[name], "Hm.")


def test_white_space_around_answers_is_stripped_and_that_of_questions_is_kept():
    assert read(role="assistant", content=" A. \n").text == "A."
    assert read(role="user", content=" Q? \n").text == " Q? \n"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_read_under_each_of_its_names(key: str):
    assert read(role="assistant", content="A.", **{key: " Hm. "}) == Turn("assistant", "A.", thought="Hm.")


@pytest.mark.parametrize(
    ("switch", "supervised"),
    [({"loss": False}, False), ({"weight": 0}, False), ({"loss_scale": 0.0}, False), ({"loss": 1}, True), ({}, True)],
)
def test_an_answer_is_supervised_unless_it_says_otherwise(switch: dict, supervised: bool):
    assert read(role="assistant", content="A.", **switch).supervised == supervised


@pytest.mark.parametrize(
    "raw",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
    ],
)
def test_calls_are_read_in_every_notation(raw: dict):
    turn = read(**raw)
    assert (turn.role, turn.text, json.loads(turn.tool_calls or "")) == ("assistant", "", [CALL])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"role": "doctor", "content": "A."}, "turn 1 has the role 'doctor', expected one of human"),
        ({"role": "user", "from": "gpt", "content": "A."}, "turn 1 has both `from` and `role`"),
        ({"role": "user", "content": 3}, "turn 1 has the content 3, expected a text"),
        ({"role": "user", "content": "Q?", "thinking": "Hm."}, "turn 1 is of user and has a thought or tool calls"),
        ({"role": "user", "content": "Q?", "loss": True}, "turn 1 is of user and has `loss`"),
        ({"role": "assistant", "content": "A.", "loss": 2}, "turn 1 has the loss 2, expected true or false"),
        ({"role": "assistant", "content": "A.", "loss": 1, "weight": 0}, "turn 1 is marked both as supervised and"),
        ({"role": "assistant", "content": "A.", "thinking": "a", "reasoning": "b"}, "turn 1 has the thought"),
    ],
)
def test_a_turn_that_cannot_be_read_is_refused_with_its_number(raw: dict, reason: str):
    with pytest.raises(InvalidRecordError, match=reason):
        read(**raw)


def test_a_turn_that_is_no_object_is_refused():
    with pytest.raises(InvalidRecordError, match="turn 1 is 'Hm.', expected an object"):
        read_turn("Hm.", 1, PartMedia(), [])


def test_parallel_calls_are_joined_to_the_answer_before_them():
    asked, answer, call = Turn("user", "Q?"), Turn("assistant", "A."), Turn("assistant", "", tool_calls=CALLS)
    joined = join_calls([asked, answer, call, call, Turn("tool", "7"), call])
    assert [turn.role for turn in joined] == ["user", "assistant", "tool", "assistant"]
    assert joined[1].text == "A." and json.loads(joined[1].tool_calls) == [CALL, CALL]


def test_turns_without_calls_are_returned_unchanged():
    turns = [Turn("user", "Q?"), Turn("assistant", "A."), Turn("assistant", "B.")]
    assert join_calls(turns) is turns


def test_calls_with_another_loss_than_the_turn_that_they_continue_are_refused():
    answer = Turn("assistant", "A.", supervised=False)
    with pytest.raises(InvalidRecordError, match="turn 1 continues a turn with another `loss`"):
        join_calls([answer, Turn("assistant", "", tool_calls=CALLS)])

"""Tests of finding the form of a record and of reading its raw turns."""

from typing import Any

import pytest

from qwenvl.data.dialects.forms import FORMS, SHARED_KEYS, find_form
from qwenvl.data.dialects.neutral import InvalidRecordError


def turns(**row: Any) -> list[tuple[str, Any]]:
    """Return role and content of the raw turns of a row in the form that it has."""
    return [(turn["role"], turn["content"]) for turn in find_form(row).turns(row)]


def test_a_row_has_the_form_whose_required_keys_it_has():
    for form in FORMS:
        assert find_form(dict.fromkeys(form.keys, "x")) is form
        assert form.read >= {*form.keys, *SHARED_KEYS}


@pytest.mark.parametrize("row", [{}, {"query": "Q?"}, {"conversations": None}, {"instruction": "I"}])
def test_a_row_without_all_keys_of_a_form_is_refused_with_the_known_forms(row: dict):
    with pytest.raises(InvalidRecordError, match="expected one of `conversations`, `messages`, .*got only"):
        find_form(row)


def test_a_row_of_two_forms_is_refused_with_both():
    with pytest.raises(InvalidRecordError, match="got conversations and query.response: keep one"):
        find_form({"conversations": [], "query": "Q?", "response": "A."})


def test_a_question_and_an_answer_follow_their_history():
    assert turns(query="Q2?", response="A2.", history=[["Q1?", "A1."]]) == [
        ("user", "Q1?"),
        ("assistant", "A1."),
        ("user", "Q2?"),
        ("assistant", "A2."),
    ]


@pytest.mark.parametrize(("given", "question"), [("x", "Sum up.\nx"), ("", "Sum up."), (None, "Sum up.")])
def test_the_input_of_an_instruction_is_its_second_line(given: str | None, question: str):
    assert turns(instruction="Sum up.", input=given, output="Done.")[0] == ("user", question)


def test_pairs_of_human_and_assistant_are_turns():
    assert turns(conversation=[{"human": "Q?", "assistant": "A."}]) == [("user", "Q?"), ("assistant", "A.")]
    with pytest.raises(InvalidRecordError, match="pair 0 is .*expected an object with `human` and `assistant`"):
        turns(conversation=[{"human": "Q?"}])


def test_the_answers_of_a_prompt_are_context_and_the_completion_is_supervised():
    prompt = [{"role": "user", "content": "Q1?"}, {"role": "assistant", "content": "A1.", "loss": True}]
    row = {"prompt": prompt, "completion": "A2."}
    read = find_form(row).turns(row)
    assert [turn.get("loss") for turn in read] == [None, False, None]
    assert prompt[1]["loss"] is True


def test_an_object_of_lists_is_a_list_of_objects():
    assert turns(messages={"role": ["user", "assistant"], "content": ["Q?", "A."]}) == [
        ("user", "Q?"),
        ("assistant", "A."),
    ]
    with pytest.raises(InvalidRecordError, match="lists of different lengths"):
        turns(messages={"role": ["user", "assistant"], "content": ["Q?"]})


@pytest.mark.parametrize("value", [[], "Q?", 3, {"a": 1}])
def test_what_is_no_list_of_turns_is_refused(value: Any):
    with pytest.raises(InvalidRecordError, match="`messages` is .*expected a list of turns"):
        turns(messages=value)


@pytest.mark.parametrize("history", ["Q?", [["Q?"]], [{"Q?": "A."}]])
def test_a_history_that_is_no_list_of_pairs_is_refused(history: Any):
    with pytest.raises(InvalidRecordError, match="expected a list of pairs of question and answer"):
        turns(query="Q?", response="A.", history=history)

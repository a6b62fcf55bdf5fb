"""Tests of the checks that turns form a conversation and that their texts can be trained on."""

import pytest

from qwenvl.data.dialects.neutral import InvalidRecordError
from qwenvl.data.records import Turn
from qwenvl.data.turn_checks import add_placeholders, check_roles, check_texts, check_unicode

QUESTION, ANSWER = Turn("user", "What?"), Turn("assistant", "A heart.")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([QUESTION], "no assistant turn"),
        ([ANSWER], "no user turn"),
        (
            [QUESTION, ANSWER, Turn("system", "Be brief.")],
            "turn 2 is a system turn, but only the first turn may be one",
        ),
        ([QUESTION, Turn("assistant", "A heart.", supervised=False)], "no answer is supervised"),
    ],
)
def test_turns_without_anything_to_train_on_are_refused(turns: list[Turn], reason: str):
    with pytest.raises(InvalidRecordError) as error:
        check_roles(turns)
    assert error.value.reason.startswith(reason)


def test_a_system_prompt_a_question_and_an_answer_are_a_conversation():
    check_roles([Turn("system", "Be brief."), QUESTION, ANSWER])


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (Turn("assistant", ""), "turn 0 is an empty answer"),
        (Turn("assistant", "see <image>"), "turn 0, an answer, contains the placeholder <image>"),
        (Turn("system", "<video>"), "turn 0, the system prompt, contains the placeholder <video>"),
        (Turn("user", "<|im_end|>"), "turn 0 contains <|im_end|>, which the chat template writes itself"),
        (Turn("assistant", "Yes.", thought="<|vision_start|>"), "turn 0 contains <|vision_start|>"),
        (Turn("user", "\ud800"), "turn 0 contains half of a surrogate pair"),
        (Turn("user", "<audio>"), "turn 0 contains <audio>, but the model takes no audio"),
        (Turn("user", "the <bbox>"), "turn 0 contains <bbox>, but the record has no `objects`"),
        (Turn("user", "<img>a.png</img>"), "turn 0 contains <img>a.png</img>, which is not read"),
    ],
)
def test_a_text_that_would_be_read_as_something_else_is_refused(turn: Turn, reason: str):
    with pytest.raises(InvalidRecordError) as error:
        check_texts([turn])
    assert error.value.reason.startswith(reason)


@pytest.mark.parametrize(
    "turn",
    [
        Turn("user", "Is 3 < 4 <image>?"),
        Turn("user", "<bbox>1 2 3 4</bbox>"),
        Turn("assistant", "Größe 12 cm²"),
        Turn("assistant", "", tool_calls="[]x"),
    ],
)
def test_ordinary_texts_and_markup_are_accepted(turn: Turn):
    check_texts([turn])


def test_placeholders_are_added_before_the_first_question_for_a_kind_that_has_none():
    turns = [Turn("system", "Be brief."), Turn("user", "<video>What?"), ANSWER]
    added = add_placeholders(turns, {"image": ["a.png", "b.png"], "video": ["c.mp4"]})
    assert [turn.text for turn in added] == ["Be brief.", "<image><image><video>What?", "A heart."]


def test_turns_whose_placeholders_match_their_media_are_returned_unchanged():
    turns = [Turn("user", "<image>What?"), ANSWER]
    assert add_placeholders(turns, {"image": ["a.png"], "video": []}) is turns


@pytest.mark.parametrize(("text", "num_images"), [("<image>", 2), ("<image><image>", 1), ("<image>", 0)])
def test_another_number_of_placeholders_than_of_media_is_refused(text: str, num_images: int):
    with pytest.raises(InvalidRecordError, match=rf"<image> in the text but {num_images} image file"):
        add_placeholders([Turn("user", text), ANSWER], {"image": ["a.png"] * num_images, "video": []})


def test_half_a_surrogate_pair_is_refused_under_the_name_of_its_field():
    check_unicode("\U0001f600", "`tools`")
    with pytest.raises(InvalidRecordError, match="`tools` contains half of a surrogate pair"):
        check_unicode("\ud83d", "`tools`")

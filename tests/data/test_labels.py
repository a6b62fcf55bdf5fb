"""Labels: exactly the assistant's turns, found by the chat template's structure and by no fixed id."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import ProcessorMixin

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.encoding import supervised_answers
from qwenvl.data.labels import IGNORE_INDEX, AssistantMarkers, make_labels, supervised_mask
from qwenvl.data.messages import to_messages
from qwenvl.errors import UserError


def supervised_text(processor: ProcessorMixin, record: Record) -> str:
    """Return the text of the tokens of a record without media that get a label."""
    text = processor.apply_chat_template(to_messages(record))
    input_ids = processor(text=[text], return_tensors="pt")["input_ids"][0]
    supervised = supervised_answers(record)
    labels = make_labels(input_ids, AssistantMarkers.from_processor(processor), supervised)
    covered = labels != IGNORE_INDEX
    assert torch.equal(labels[covered], input_ids[covered])
    return processor.tokenizer.decode(input_ids[covered])


def test_every_assistant_turn_is_supervised_with_its_end_token_and_nothing_else(
    processor: ProcessorMixin, make_record: Callable[..., Record]
):
    record = make_record("First?", "The first.", "Second?", "The second.", system="You are an assistant\nAnswer.")
    assert supervised_text(processor, record) == "The first.<|im_end|>The second.<|im_end|>"


def test_an_answer_that_is_not_supervised_is_context_alone(processor: ProcessorMixin):
    turns = [Turn("user", "Q1"), Turn("assistant", "Not this.", supervised=False)]
    turns += [Turn("user", "Q2"), Turn("assistant", "This."), Turn("user", "Q3"), Turn("assistant", "And this.")]
    assert supervised_text(processor, Record("t.json", 0, tuple(turns))) == "This.<|im_end|>And this.<|im_end|>"


def test_calls_are_learned_and_what_tools_return_is_not(processor: ProcessorMixin):
    call = '[{"function": {"name": "zoom", "arguments": {}}}]'
    turns = [Turn("user", "Q"), Turn("assistant", "Look.", tool_calls=call), Turn("tool", "spot"), Turn("tool", "two")]
    record = Record("t.json", 0, (*turns, Turn("assistant", "A spot.")))
    assert supervised_text(processor, record) == (
        'Look.\n<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call><|im_end|>A spot.<|im_end|>'
    )


def test_words_of_the_header_in_a_question_start_no_answer(
    processor: ProcessorMixin, make_record: Callable[..., Record]
):
    record = make_record("assistant\nNot this.\nassistant\n", "This: assistant\nassistant\n1.")
    assert supervised_text(processor, record) == "This: assistant\nassistant\n1.<|im_end|>"


def test_after_an_opened_thought_only_what_the_model_must_write_itself_is_supervised(
    thinking_processor: ProcessorMixin, make_record: Callable[..., Record]
):
    record = make_record("One?", "1", "Two?", "<think>\nOne and one.\n</think>\n\nIt is 2")
    assert supervised_text(thinking_processor, record) == "1<|im_end|>One and one.\n</think>\n\nIt is 2<|im_end|>"


def test_an_empty_thought_is_closed_by_the_model(
    thinking_processor: ProcessorMixin, make_record: Callable[..., Record]
):
    assert supervised_text(thinking_processor, make_record("One?", "1")) == "\n</think>\n\n1<|im_end|>"


def test_a_thought_in_an_answer_is_supervised_where_the_prompt_does_not_open_it(
    processor: ProcessorMixin, make_record: Callable[..., Record]
):
    answer = "<think>\nA circle.\n</think>\n\nRound."
    assert supervised_text(processor, make_record("Shape?", answer)) == f"{answer}<|im_end|>"


def test_markers_are_those_of_the_tokenizer_at_hand(processor: ProcessorMixin, thinking_processor: ProcessorMixin):
    convert = processor.tokenizer.convert_tokens_to_ids
    markers = AssistantMarkers.from_processor(processor)
    assert markers.header[0] == convert("<|im_start|>")
    assert processor.tokenizer.decode(markers.header) == "<|im_start|>assistant\n"
    assert markers.end == convert("<|im_end|>")
    assert markers.thought == ()
    assert processor.tokenizer.decode(AssistantMarkers.from_processor(thinking_processor).thought) == "<think>\n"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "does not delimit answers"),
        (
            "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}",
            "expected a special token",
        ),
    ],
    ids=["no header", "no end token"],
)
def test_a_template_without_structure_is_refused(own_processor: ProcessorMixin, template: str, told: str):
    own_processor.chat_template = template
    with pytest.raises(UserError, match=told):
        AssistantMarkers.from_processor(own_processor)


MARKERS = AssistantMarkers(header=(1, 2, 3), thought=(7, 8), end=9)


@pytest.mark.parametrize(
    ("ids", "covered"),
    [
        ([1, 2, 3, 5, 6, 9, 4], [3, 4, 5]),
        ([1, 2, 3, 9], [3]),
        ([1, 2, 3, 7, 8, 5, 9], [5, 6]),
        # 88: a line break that is one token together with the next, as "\n\n" is in the real tokenizer.
        ([1, 2, 3, 7, 88, 5, 9], [5, 6]),
        ([1, 2, 3, 5, 9, 1, 2, 3, 7, 0, 6, 9], [3, 4, 10, 11]),
        ([1, 2, 5, 9, 2, 3, 9, 1, 2], []),
        ([1, 2, 3, 5, 6], []),
        ([9], []),
        ([], []),
    ],
)
def test_turns_are_found_by_their_header_and_end(ids: list[int], covered: list[int]):
    mask, _ = supervised_mask(np.array(ids, dtype=np.int64), MARKERS)
    assert np.flatnonzero(mask).tolist() == covered


def test_another_number_of_turns_than_the_record_has_is_an_error():
    with pytest.raises(ValueError, match="found 1 assistant turns among the tokens, expected 2"):
        make_labels(torch.tensor([1, 2, 3, 5, 9]), MARKERS, [True, True])

"""Rendered words: whatever a record says is in its chat, or the record is refused with what to do."""

import json

import pytest
from transformers import ProcessorMixin

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.encoding import RecordEncoder
from qwenvl.errors import UserError


def answer(text: str, **fields: object) -> Record:
    """Return a record with one question and one answer."""
    return Record("t.json", 0, (Turn("user", "Q?"), Turn("assistant", text, **fields)))


def chat(*turns: Turn, tools: list | None = None) -> Record:
    """Return a record of these turns."""
    return Record("t.json", 0, turns, tools=None if tools is None else json.dumps(tools))


def rendered(processor: ProcessorMixin, record: Record) -> str:
    """Return the chat, which must not be refused."""
    (text,) = RecordEncoder(processor).render_checked([record])
    assert isinstance(text, str), text
    return text


def refusal(processor: ProcessorMixin, record: Record) -> str:
    """Return why the record is refused."""
    (text,) = RecordEncoder(processor).render_checked([record])
    assert isinstance(text, UserError), text
    return str(text)


@pytest.mark.parametrize(
    "record",
    [
        answer("A.", thought="REASON"),
        answer("<think>\nREASON\n</think>\n\nA."),
        answer("<think>REASON</think>A."),
        answer("REASON\n</think>\n\nA."),
    ],
    ids=["its own field", "in the answer", "without line breaks", "opened by the prompt"],
)
def test_a_thought_is_written_as_the_thinking_model_writes_it(thinking_processor: ProcessorMixin, record: Record):
    assert rendered(thinking_processor, record).endswith(
        "<|im_start|>assistant\n<think>\nREASON\n</think>\n\nA.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Sure. <think>R1</think> A1",
        "<think>R1</think>A1<think>R2</think>A2",
        "The tag </think> ends a thought.",
        "R1</think>A1</think>A2",
    ],
)
def test_an_answer_whose_words_a_thinking_template_would_lose_or_take_for_a_thought_is_refused(
    processor: ProcessorMixin, thinking_processor: ProcessorMixin, text: str
):
    assert "an answer may have one thought" in refusal(thinking_processor, answer(text))
    assert text in rendered(processor, answer(text))


def test_a_thought_that_the_template_of_an_instruct_model_leaves_out_is_refused(processor: ProcessorMixin):
    told = refusal(processor, answer("A.", thought="REASON"))
    assert "turn 1" in told and "'REASON'" in told and "Thinking model" in told


def test_the_thought_of_an_answer_that_is_context_may_be_left_out_but_not_its_words(thinking_processor: ProcessorMixin):
    last = Turn("user", "Q2?"), Turn("assistant", "A2.", thought="R2")
    context = Turn("assistant", "<think>R1</think>A1.", supervised=False)
    assert "R1" not in rendered(thinking_processor, chat(Turn("user", "Q1?"), context, *last))
    broken = Turn("assistant", "Sure. <think>R1</think>A1.", supervised=False)
    assert "'Sure.'" in refusal(thinking_processor, chat(Turn("user", "Q1?"), broken, *last))


CALL = {"type": "function", "function": {"name": "zoom", "arguments": '{"box": [1, 22], "why": "two\\nlines"}'}}
TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {}}}
CALLING = (Turn("user", "Q?"), Turn("assistant", "Let me zoom.", tool_calls=json.dumps([CALL])))
ANSWERING = (Turn("tool", "a large spot"), Turn("assistant", "A spot."))


def test_tools_calls_and_results_are_written_by_the_models_own_template(processor: ProcessorMixin):
    text = rendered(processor, chat(*CALLING, *ANSWERING, tools=[TOOL]))
    assert json.dumps(TOOL) in text[: text.index("Q?")]
    assert '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 22], "why": "two\\nlines"}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\na large spot\n</tool_response><|im_end|>" in text


def test_records_with_and_without_tools_keep_their_order(processor: ProcessorMixin):
    records = [answer("1"), chat(*CALLING, tools=[TOOL]), answer("2"), chat(*CALLING)]
    texts = RecordEncoder(processor).render_checked(records)
    assert ["# Tools" in text for text in texts] == [False, True, False, False]
    assert "1<|im_end|>" in texts[0] and "2<|im_end|>" in texts[2]


PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (chat(*CALLING), "a model whose template supports tool calls"),
        (chat(Turn("user", "Q?"), Turn("assistant", "A."), tools=[TOOL]), "leaves out the tool 'zoom'"),
    ],
    ids=["calls", "tools"],
)
def test_tools_and_calls_that_a_template_leaves_out_are_refused(
    own_processor: ProcessorMixin, record: Record, told: str
):
    own_processor.chat_template = PLAIN_TEMPLATE
    assert told in refusal(own_processor, record)


def test_words_that_a_template_cuts_or_a_role_that_it_leaves_out_are_refused(own_processor: ProcessorMixin):
    own_processor.chat_template = PLAIN_TEMPLATE.replace("{% for p", "{% if m.role != 'system' %}{% for p").replace(
        "{% endfor %}<|im_end|>", "{% endfor %}{% endif %}<|im_end|>"
    )
    assert "'Be brief.'" in refusal(own_processor, chat(Turn("system", "Be brief."), *answer("Yes.").turns))
    own_processor.chat_template = PLAIN_TEMPLATE.replace("{{ p.text }}", "{{ p.text[:9] }}")
    assert "'Yes, it is so.'" in refusal(own_processor, answer("Yes, it is so."))


def test_words_said_again_later_do_not_stand_for_those_left_out(own_processor: ProcessorMixin):
    own_processor.chat_template = PLAIN_TEMPLATE.replace("{{ p.text }}", "{{ p.text if m.role != 'user' }}")
    assert "turn 0" in refusal(own_processor, chat(Turn("user", "Yes"), Turn("assistant", "Yes")))


def test_a_record_that_the_template_refuses_is_named_and_the_others_are_not(own_processor: ProcessorMixin):
    own_processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}"
        + PLAIN_TEMPLATE
    )
    encoder = RecordEncoder(own_processor)
    texts = encoder.render_checked([answer("1"), chat(*answer("2").turns, *ANSWERING)])
    assert isinstance(texts[0], str)
    assert str(texts[1]) == "the model's chat template rejects this record: no tools"


@pytest.mark.parametrize("token", ["<|box_start|>", "<|object_ref_end|>", "<|vision_pad|>", "<|im_end|>"])
@pytest.mark.parametrize(
    "record",
    [
        lambda token: answer(f"It {token} is"),
        lambda token: chat(Turn("user", f"{token}"), Turn("assistant", "A.")),
        lambda token: answer("A.", thought=f"so {token}"),
        lambda token: chat(
            CALLING[0], Turn("assistant", "", tool_calls=json.dumps([{"name": token, "arguments": {}}]))
        ),
        lambda token: chat(*answer("A.").turns, tools=[{"name": token}]),
    ],
    ids=["answer", "question", "thought", "call", "tools"],
)
def test_a_special_token_of_the_model_is_refused_wherever_it_stands(processor: ProcessorMixin, record, token: str):
    told = refusal(processor, record(token))
    assert f"contain {token}" in told or f"contains {token}" in told


def test_box_tokens_of_earlier_models_are_refused_with_the_notation_of_this_one(processor: ProcessorMixin):
    assert "write boxes as JSON with bbox_2d" in refusal(processor, answer("<|box_start|>(1,2),(3,4)<|box_end|>"))


def test_added_tokens_that_are_plain_text_may_stand_in_a_text(processor: ProcessorMixin):
    assert "<tool_call>" in rendered(processor, answer("<tool_call> and <|unknown|>"))

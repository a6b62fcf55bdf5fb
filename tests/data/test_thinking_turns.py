"""Thoughts of earlier answers: each learned once, in the chat that the model sees at inference."""

import pytest
from transformers import ProcessorMixin

from qwenvl.data.annotations import Annotations, Record, Turn
from qwenvl.data.encoding import RecordEncoder, supervised_answers
from qwenvl.data.labels import IGNORE_INDEX, make_labels
from qwenvl.data.thinking_turns import count_thoughtless_answers, split_thinking_turns


def thinking(number: int) -> tuple[Turn, Turn]:
    """Return a question and an answer with a thought."""
    return Turn("user", f"Q{number}"), Turn("assistant", f"A{number}", thought=f"R{number}")


def record(*pairs: tuple[Turn, ...], row: int = 0, **fields: object) -> Record:
    """Return a record of pairs of turns."""
    return Record("t.json", row, sum(pairs, ()), **fields)


def split(processor: ProcessorMixin, records: list[Record], mode: str, packs: list[list[int]] | None = None):
    """Return the annotations and what is told."""
    return split_thinking_turns(Annotations(records, packs), RecordEncoder(processor), mode)


def supervised_texts(processor: ProcessorMixin, records: list[Record]) -> list[str]:
    """Return what is learned of each record without media."""
    encoder, texts = RecordEncoder(processor), []
    for each, text in zip(records, encoder.render_checked(records), strict=True):
        ids = processor(text=[text], return_tensors="pt")["input_ids"][0]
        labels = make_labels(ids, encoder.markers, supervised_answers(each))
        texts.append(processor.tokenizer.decode(ids[labels != IGNORE_INDEX]))
    return texts


TWO = record(thinking(1), thinking(2))


def test_each_answer_with_its_thought_is_learned_once_after_the_history_of_inference(
    thinking_processor: ProcessorMixin,
):
    annotations, told = split(thinking_processor, [TWO], "each")
    assert supervised_texts(thinking_processor, annotations.records) == [
        "R1\n</think>\n\nA1<|im_end|>",
        "R2\n</think>\n\nA2<|im_end|>",
    ]
    (_, second) = RecordEncoder(thinking_processor).render(annotations.records)
    history = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1", "reasoning_content": "R1"}]
    prompt = thinking_processor.apply_chat_template(
        [*history, {"role": "user", "content": "Q2"}], add_generation_prompt=True
    )
    assert second == f"{prompt}R2\n</think>\n\nA2<|im_end|>\n"
    assert told.startswith("1 records have thoughts in earlier answers") and "become 2 samples" in told


def test_last_learns_the_answer_to_the_last_question_and_tells_what_is_not_learned(thinking_processor: ProcessorMixin):
    annotations, told = split(thinking_processor, [record(thinking(1), thinking(2), thinking(3))], "last")
    assert supervised_texts(thinking_processor, annotations.records) == ["R3\n</think>\n\nA3<|im_end|>"]
    assert "2 earlier ones are context" in told


@pytest.mark.parametrize("mode", ["each", "last"])
def test_records_that_lose_nothing_stay_whole(processor: ProcessorMixin, thinking_processor: ProcessorMixin, mode: str):
    plain = record((Turn("user", "Q"), Turn("assistant", "A")), (Turn("user", "Q"), Turn("assistant", "A")))
    inline = record((Turn("user", "Q"), Turn("assistant", "<think>R</think>A")), thinking(2)[:1] + plain.turns[1:2])
    for model, records in ((thinking_processor, [plain, record(thinking(1))]), (processor, [plain, inline])):
        annotations, told = split(model, records, mode)
        assert annotations.records == records and told is None


def test_thoughts_between_calls_of_one_question_stay_together(thinking_processor: ProcessorMixin):
    calls = (
        Turn("user", "Q2"),
        Turn("assistant", "", thought="R2", tool_calls='[{"function": {"name": "zoom", "arguments": {}}}]'),
        Turn("tool", "a spot"),
        Turn("assistant", "A2", thought="R3"),
    )
    annotations, _ = split(thinking_processor, [record(thinking(1), calls)], "each")
    assert len(annotations.records) == 2
    learned = supervised_texts(thinking_processor, annotations.records)[1]
    assert learned.startswith("R2\n</think>\n\n<tool_call>") and learned.endswith("R3\n</think>\n\nA2<|im_end|>")


def test_each_sample_has_the_media_of_its_turns(thinking_processor: ProcessorMixin):
    first, second = thinking(1), thinking(2)
    turns = (Turn("user", "<image>a"), first[1], Turn("user", "<video>b<image>"), second[1], Turn("user", "<image>c"))
    annotations, _ = split(
        thinking_processor, [Record("t.json", 0, turns, ("1.png", "2.png", "3.png"), ("1.mp4",))], "each"
    )
    assert [(each.images, each.videos) for each in annotations.records] == [
        (("1.png",), ()),
        (("1.png", "2.png"), ("1.mp4",)),
    ]


def test_an_answer_that_is_context_makes_no_sample(thinking_processor: ProcessorMixin):
    first = (thinking(1)[0], Turn("assistant", "A1", thought="R1", supervised=False))
    annotations, _ = split(thinking_processor, [record(first, thinking(2), thinking(3))], "each")
    assert supervised_texts(thinking_processor, annotations.records) == [
        "R2\n</think>\n\nA2<|im_end|>",
        "R3\n</think>\n\nA3<|im_end|>",
    ]


def test_a_record_that_loses_more_than_thoughts_leaves_the_sample_to_refuse(thinking_processor: ProcessorMixin):
    broken = (Turn("user", "Q2"), Turn("assistant", "Sure. <think>R2</think>A2"))
    annotations, told = split(thinking_processor, [record(thinking(1), broken), record(thinking(3))], "each")
    assert len(annotations.records) == 2 and told is None
    refused, kept = RecordEncoder(thinking_processor).render_checked(annotations.records)
    assert "turn 3" in str(refused) and "R3" in kept


def test_packs_keep_all_samples_of_their_records(thinking_processor: ProcessorMixin):
    records = [record(thinking(0)), TWO, record(thinking(3)), TWO]
    annotations, _ = split(thinking_processor, records, "each", packs=[[0, 1], [2], [3]])
    assert annotations.packs == [[0, 1, 2], [3], [4], [5]]


def test_supervised_answers_without_a_thought_are_counted():
    plain = (Turn("user", "Q"), Turn("assistant", "A"))
    context = (Turn("user", "Q"), Turn("assistant", "A", supervised=False))
    inline = (Turn("user", "Q"), Turn("assistant", "<think>R</think>A"))
    assert count_thoughtless_answers([record(plain, context, inline), TWO]) == (4, 1)

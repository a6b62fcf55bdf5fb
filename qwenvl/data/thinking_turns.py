"""Keep the thoughts of a chat's earlier answers: one sample per question, as the model sees it at inference."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from qwenvl.data.annotations import Annotations, Record, Turn
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.rendered_words import is_thoughtless
from qwenvl.errors import UserError

ThinkingTurns = Literal["each", "last"]

_CHUNK = 2048


def split_thinking_turns(
    annotations: Annotations, encoder: RecordEncoder, mode: ThinkingTurns
) -> tuple[Annotations, str | None]:
    """Split the records whose earlier thoughts the chat template leaves out; return the records and a message.

    A Thinking model's template writes only the thoughts after the last question. Under "each" such a record becomes one
    sample per question, in which the answers to earlier questions are context; "last" keeps only the last one. If other
    text is lost too, only the sample that loses it is kept, and is rejected when its tokens are counted. A pack keeps
    all samples of its records.
    """
    records = annotations.records
    candidates = [index for index, record in enumerate(records) if _may_lose_thoughts(record)]
    samples: dict[int, list[Record]] = {}
    refused: set[int] = set()
    for start in range(0, len(candidates), _CHUNK):
        indices = candidates[start : start + _CHUNK]
        rendered = encoder.render_checked([records[index] for index in indices])
        for index, text in zip(indices, rendered, strict=True):
            if isinstance(text, UserError):
                samples[index], loses_text = _split_record(records[index], encoder, mode)
                refused |= {index} if loses_text else set()
    if not samples:
        return annotations, None
    split = {index: parts for index, parts in samples.items() if index not in refused}
    return _replace_records(annotations, samples), _describe_split(split, records, mode) if split else None


def _may_lose_thoughts(record: Record) -> bool:
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    # A turn after the last answer is not supervised, but makes that answer an earlier one.
    if len(answers) == 1 and record.turns[-1] is answers[0]:
        return False
    return any(turn.supervised and not is_thoughtless(turn) for turn in answers)


def _split_record(record: Record, encoder: RecordEncoder, mode: ThinkingTurns) -> tuple[list[Record], bool]:
    """Return the samples of a record and False, or the first sample whose rendering loses text and True."""
    samples = [*_samples_per_question(record)]
    if mode == "last":
        samples = samples[-1:]
    rendered = encoder.render_checked(samples)
    refused = [sample for sample, text in zip(samples, rendered, strict=True) if isinstance(text, UserError)]
    return refused[:1] or samples, bool(refused)


def _samples_per_question(record: Record) -> Iterator[Record]:
    questions = [number for number, turn in enumerate(record.turns) if turn.role == "user"]
    for start, stop in zip(questions, [*questions[1:], len(record.turns)], strict=True):
        if any(_is_supervised_answer(turn) for turn in record.turns[start:stop]):
            turns = tuple(_as_context(turn) for turn in record.turns[:start]) + record.turns[start:stop]
            yield replace(
                record,
                turns=turns,
                images=record.images[: _count(turns, "<image>")],
                videos=record.videos[: _count(turns, "<video>")],
            )


def _as_context(turn: Turn) -> Turn:
    return replace(turn, supervised=False) if turn.role == "assistant" else turn


def _count(turns: Sequence[Turn], mark: str) -> int:
    return sum(turn.text.count(mark) for turn in turns if turn.role in ("user", "tool"))


def _replace_records(annotations: Annotations, samples: dict[int, list[Record]]) -> Annotations:
    records: list[Record] = []
    new_indices: list[range] = []
    for index, record in enumerate(annotations.records):
        parts = samples.get(index, [record])
        new_indices.append(range(len(records), len(records) + len(parts)))
        records += parts
    packs: list[list[int]] | None = None
    if annotations.packs is not None:
        packs = []
        for pack in annotations.packs:
            indices = [new for index in pack for new in new_indices[index]]
            # The samples of a record outside any pack are not packed either.
            packs += [indices] if len(pack) > 1 else [[index] for index in indices]
    return replace(annotations, records=records, packs=packs)


def _describe_split(samples: dict[int, list[Record]], records: Sequence[Record], mode: ThinkingTurns) -> str:
    counted = f"{len(samples):,} records have thoughts in earlier answers, which the chat template leaves out"
    if mode == "each":
        num_samples = sum(map(len, samples.values()))
        return f"{counted}: they become {num_samples:,} samples, one per question (--thinking_turns each)"
    given, kept = (
        sum(_is_supervised_answer(turn) for record in part for turn in record.turns)
        for part in ([records[index] for index in samples], [each for parts in samples.values() for each in parts])
    )
    return (
        f"{counted}: only the answers to the last question are supervised, {given - kept:,} earlier ones are context "
        "(--thinking_turns last; each supervises them all)"
    )


def count_thoughtless_answers(records: Iterable[Record]) -> tuple[int, int]:
    """Return the number of supervised answers, and how many of them have no thought."""
    answers = [is_thoughtless(turn) for record in records for turn in record.turns if _is_supervised_answer(turn)]
    return len(answers), sum(answers)


def _is_supervised_answer(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.supervised


def describe_thoughtless_answers(num_answers: int, num_thoughtless: int) -> str:
    """Return a warning about what a Thinking model learns from answers without a thought."""
    return (
        f"{num_thoughtless:,} of {num_answers:,} answers have no thought: this Thinking model learns to answer "
        "such questions without thinking (to keep its thoughts, give each answer one, as <think>...</think> or "
        "`reasoning_content`; to train on plain answers, start from an Instruct model)"
    )

"""Keep the thoughts of a chat's earlier answers: one sample for each question, as the model sees it at inference."""

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
    """Return the records with those split whose earlier thoughts the chat template leaves out, and what to tell.

    A Thinking model's template writes the thoughts that follow the last question alone. Under "each" such a record
    becomes one sample for each question, in which the answers to earlier ones are context; "last" keeps the last one
    alone. Where other words are lost too, the sample that loses them is all that is left of its record, for the count
    of its tokens to refuse it. A pack keeps all samples of its records.
    """
    records = annotations.records
    candidates = [place for place, record in enumerate(records) if _may_lose_thoughts(record)]
    samples: dict[int, list[Record]] = {}
    refused: set[int] = set()
    for start in range(0, len(candidates), _CHUNK):
        places = candidates[start : start + _CHUNK]
        rendered = encoder.render_checked([records[place] for place in places])
        for place, text in zip(places, rendered, strict=True):
            if isinstance(text, UserError):
                samples[place], lost = _samples(records[place], encoder, mode)
                refused |= {place} if lost else set()
    if not samples:
        return annotations, None
    split = {place: parts for place, parts in samples.items() if place not in refused}
    return _replaced(annotations, samples), _told(split, records, mode) if split else None


def _may_lose_thoughts(record: Record) -> bool:
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    # What stands behind the last answer is not supervised, but it makes that answer an earlier one.
    if len(answers) == 1 and record.turns[-1] is answers[0]:
        return False
    return any(turn.supervised and not is_thoughtless(turn) for turn in answers)


def _samples(record: Record, encoder: RecordEncoder, mode: ThinkingTurns) -> tuple[list[Record], bool]:
    """Return the samples that a record becomes, or else the first that is not rendered whole; and which it is."""
    samples = [*_one_for_each_question(record)]
    if mode == "last":
        samples = samples[-1:]
    rendered = encoder.render_checked(samples)
    refused = [sample for sample, text in zip(samples, rendered, strict=True) if isinstance(text, UserError)]
    return refused[:1] or samples, bool(refused)


def _one_for_each_question(record: Record) -> Iterator[Record]:
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


def _replaced(annotations: Annotations, samples: dict[int, list[Record]]) -> Annotations:
    records: list[Record] = []
    new_places: list[range] = []
    for place, record in enumerate(annotations.records):
        parts = samples.get(place, [record])
        new_places.append(range(len(records), len(records) + len(parts)))
        records += parts
    packs: list[list[int]] | None = None
    if annotations.packs is not None:
        packs = []
        for pack in annotations.packs:
            places = [new for place in pack for new in new_places[place]]
            # A record that the file puts into no pack brings samples that belong to none either.
            packs += [places] if len(pack) > 1 else [[place] for place in places]
    return replace(annotations, records=records, packs=packs)


def _told(samples: dict[int, list[Record]], records: Sequence[Record], mode: ThinkingTurns) -> str:
    number = f"{len(samples):,} records hold thoughts in earlier answers, which the chat template leaves out"
    if mode == "each":
        made = sum(map(len, samples.values()))
        return f"{number}: they become {made:,} samples, one for each question (--thinking_turns each)"
    given, kept = (
        sum(_is_supervised_answer(turn) for record in part for turn in record.turns)
        for part in ([records[place] for place in samples], [each for parts in samples.values() for each in parts])
    )
    return (
        f"{number}: only the answers to the last question are supervised, {given - kept:,} earlier ones are context "
        "(--thinking_turns last; each learns them all)"
    )


def count_thoughtless_answers(records: Iterable[Record]) -> tuple[int, int]:
    """Return how many supervised answers there are, and how many of them come without a thought."""
    answers = [is_thoughtless(turn) for record in records for turn in record.turns if _is_supervised_answer(turn)]
    return len(answers), sum(answers)


def _is_supervised_answer(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.supervised


def describe_thoughtless_answers(num_answers: int, num_thoughtless: int) -> str:
    """Return what a Thinking model learns from answers without a thought."""
    return (
        f"{num_thoughtless:,} of {num_answers:,} answers come without a thought: this Thinking model learns to answer "
        "such questions without thinking (to keep its thoughts, give each answer one, as <think>...</think> or "
        "`reasoning_content`; for plain answers an Instruct model is the better start)"
    )

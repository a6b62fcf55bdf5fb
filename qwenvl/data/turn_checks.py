"""Check that turns form a conversation, and that their texts contain no reserved tokens or foreign placeholders."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl.data.dialects.neutral import PLACEHOLDERS, InvalidRecordError
from qwenvl.data.records import Turn

# Tokens that the chat template and the processor write themselves; in a text they would be read as structure.
RESERVED_TOKENS = re.compile(r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|image_pad|video_pad)\|>")
# Placeholders of other tools, which would be trained on as text; with a closing tag, two of them are markup instead.
_FOREIGN_MARKS = re.compile(r"<img>[^<>\n]+</img>|<(audio|ref-object|bbox)>(?!.*</\1>)", re.S)
_REMEDIES = {
    "audio": "the model takes no audio: leave the record out",
    "ref-object": "the record has no `objects` to fill it in from: add them, or write the name out",
    "bbox": "the record has no `objects` to fill it in from: add them, or write the box out",
}


def check_roles(turns: Sequence[Turn]) -> None:
    """Raise `InvalidRecordError` unless there are a question and a supervised answer, and no late system prompt."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise InvalidRecordError(
            "no assistant turn, so there is nothing to train on: add a turn from gpt (or assistant)"
        )
    if "user" not in roles:
        raise InvalidRecordError("no user turn: add one from human (or user) before the answer")
    if "system" in roles[1:]:
        number = roles.index("system", 1)
        raise InvalidRecordError(f"turn {number} is a system turn, but only the first turn may be one")
    if not any(turn.supervised for turn in turns if turn.role == "assistant"):
        raise InvalidRecordError("no answer is supervised (loss or weight): leave the record out")


def check_texts(turns: Sequence[Turn]) -> None:
    """Raise `InvalidRecordError` for a text, a thought or a tool call that cannot be trained on as it is written."""
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.text and not turn.tool_calls:
            raise InvalidRecordError(f"turn {number} is an empty answer: write it or delete the record")
        for text in (turn.text, turn.thought, turn.tool_calls):
            # Everything that is searched for contains one of these; most texts have neither.
            if text and ("<" in text or not text.isascii()):
                _check_text(text, turn, number)


def add_placeholders(turns: list[Turn], media: Mapping[str, Sequence[Any]]) -> list[Turn]:
    """Return the turns with one placeholder per medium: if a kind has none, all are put before the first user text."""
    missing = ""
    for kind, mark in PLACEHOLDERS.items():
        marks = sum([turn.text.count(mark) for turn in turns])
        if marks != len(media[kind]):
            if marks:
                raise InvalidRecordError(
                    f"{marks} {mark} in the text but {len(media[kind])} {kind} file(s): make them equal"
                )
            missing += mark * len(media[kind])
    if not missing:
        return turns
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    return [*turns[:first], Turn("user", missing + turns[first].text), *turns[first + 1 :]]


def check_unicode(text: str, what: str) -> None:
    """Raise `InvalidRecordError` for half of a surrogate pair, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRecordError(
            f"{what} contains half of a surrogate pair, which no tokenizer accepts: correct the text"
        ) from None


def _check_text(text: str, turn: Turn, number: int) -> None:
    if turn.role != "user":
        found = next((mark for mark in PLACEHOLDERS.values() if mark in text), None)
        if found:
            kind = {"assistant": "an answer", "system": "the system prompt"}.get(turn.role, "a tool's answer")
            raise InvalidRecordError(
                f"turn {number}, {kind}, contains the placeholder {found}: only user turns may have media"
            )
    check_unicode(text, f"turn {number}")
    reserved = RESERVED_TOKENS.search(text)
    if reserved:
        raise InvalidRecordError(
            f"turn {number} contains {reserved[0]}, which the chat template writes itself: delete it"
        )
    foreign = _FOREIGN_MARKS.search(text)
    if foreign and foreign[1]:
        raise InvalidRecordError(f"turn {number} contains {foreign[0]}, but {_REMEDIES[foreign[1]]}")
    if foreign:
        raise InvalidRecordError(
            f"turn {number} contains {foreign[0][:80]}, which is not read: write <image> instead, and the path under "
            "`image`"
        )

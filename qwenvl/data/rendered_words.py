"""Check what a chat template makes of a record: that no special token stands in its texts and that no word is lost."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from qwenvl.data.annotations import RESERVED_TOKENS, Record, Turn
from qwenvl.data.messages import calls_of, tools_of, turn_texts

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
# Also a thought whose opening mark was part of the prompt that an answer was generated from.
_THOUGHT = re.compile(r"(?:^(?:(?!<think>).)*?|<think>.*?)</think>", re.DOTALL)
_SNIPPET = 60


class SpecialTokens:
    """The special tokens of a model, which a text must not hold: they would be read as structure.

    Answers lose them too: decoding leaves special tokens out. This is the one rule for training and for every check.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        words = {*tokenizer.all_special_tokens}
        words |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # A look for what all of them begin with spares nearly all texts the search for each.
        self._prefix = os.path.commonprefix([*words])
        longest_first = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), RESERVED_TOKENS.pattern]))

    def flaw(self, record: Record) -> str | None:
        """Return why a record's texts, thoughts, calls or tools cannot be used, or None."""
        for number, turn in enumerate(record.turns):
            for text in (turn.text, turn.thought, turn.tool_calls):
                found = self._search(text)
                if found:
                    return f"turn {number} holds {found}, a special token of the model: {_remedy(found)}"
        found = self._search(record.tools)
        return found and f"`tools` hold {found}, a special token of the model: delete it"

    def _search(self, text: str | None) -> str | None:
        if not text or self._prefix not in text:
            return None
        found = self._pattern.search(text)
        return found and found[0]


def _remedy(token: str) -> str:
    if re.search("box|quad|object_ref", token):
        return "write boxes as JSON with bbox_2d, as Qwen3-VL does (tools/process_bbox.ipynb shows how)"
    return "delete it"


def is_thoughtless(turn: Turn) -> bool:
    """Whether an answer comes without a thought."""
    return not (turn.thought and turn.thought.strip()) and THOUGHT_END not in turn.text


def missing_words(record: Record, rendered: str, header: str, end: str) -> str | None:
    """Return which words of the record its rendered chat lacks and what to do, or None where all are there, in order.

    `header` opens an answer and `end` closes it. White space beside the marks of a thought may differ. Of an answer
    that is context only, the thought may be missing, as it is at inference.
    """
    for tool in tools_of(record) or ():
        name = tool.get("function", tool).get("name")
        if not isinstance(name, str) or name not in rendered:
            return f"the chat template leaves out the tool {name!r}: take a model whose template knows tools"
    position = 0
    for number, turn in enumerate(record.turns):
        stop = rendered.find(header, position)
        if turn.role == "assistant":
            if stop < 0:
                return f"turn {number}: the chat template leaves out this answer"
            position = stop + len(header)
            stop = rendered.find(end, position)
        lost, position = _find_pieces(_pieces(turn), rendered, position, stop if stop >= 0 else len(rendered))
        if lost is not None:
            return _reason(number, turn, lost)
        if turn.role == "assistant":
            position = stop
    return None


def _pieces(turn: Turn) -> Iterator[str]:
    if turn.role != "assistant":
        yield from turn_texts(turn)
        return
    if not turn.supervised:
        yield from _THOUGHT.split(turn.text) if THOUGHT_END in turn.text else (turn.text,)
    else:
        if turn.thought:
            yield turn.thought
        yield turn.text
    if turn.tool_calls is not None:
        for call in calls_of(turn):
            yield from _leaves(call.get("function", call))


def _leaves(value: Any) -> Iterator[str]:
    """Yield the name of a call and all that its arguments hold, whatever notation a template has for them."""
    if isinstance(value, dict) and "name" in value and "arguments" in value:
        yield str(value["name"])
        yield from _leaves(value["arguments"])
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _find_pieces(pieces: Iterator[str], rendered: str, position: int, stop: int) -> tuple[str | None, int]:
    """Find the pieces one after another; return the first that is missing, if any, and where the last one ends."""
    for piece in pieces:
        piece = piece.strip()
        found = rendered.find(piece, position, stop)
        if found >= 0:
            position = found + len(piece)
            continue
        escaped = json.dumps(piece, ensure_ascii=False)[1:-1]
        found = rendered.find(escaped, position, stop)
        if found >= 0:
            position = found + len(escaped)
        elif not _is_there_with_other_spaces(piece, rendered[position:stop]):
            return piece, position
    return None, position


def _is_there_with_other_spaces(piece: str, rendered: str) -> bool:
    """Whether a template that takes thoughts apart and writes them anew has changed white space alone.

    Where no mark opens the thought, what stands before the closing one may as well be the answer itself.
    """
    opens_with_thought = piece.startswith(THOUGHT_START) and THOUGHT_END in piece
    return opens_with_thought and "".join(piece.split()) in "".join(rendered.split())


def _reason(number: int, turn: Turn, lost: str) -> str:
    shown = lost if len(lost) <= _SNIPPET else f"{lost[: _SNIPPET - 3]}..."
    reason = f"turn {number}: the chat template does not write {shown!r} as it stands"
    if turn.role == "assistant" and turn.thought and lost == turn.thought.strip():
        return f"{reason}: this thought needs a Thinking model (or leave it out, or write it into the answer itself)"
    if THOUGHT_END in turn.text or THOUGHT_START in turn.text:
        return (
            f"{reason}: an answer may hold one thought, {THOUGHT_START}...{THOUGHT_END} at its beginning; move the "
            "thought there, or take the marks out"
        )
    if turn.tool_calls is not None:
        return f"{reason}: take a model whose template knows tool calls"
    return f"{reason}: take the model's own template, or leave this turn out"

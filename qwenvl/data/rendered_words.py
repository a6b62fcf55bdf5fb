"""Check a rendered chat: no special token occurs in the texts of its record, and the template drops no text."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from qwenvl.data.annotations import RESERVED_TOKENS, Record, Turn
from qwenvl.data.messages import calls_of, tools_of, turn_texts

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
# Also a thought whose opening tag was part of the prompt that the answer was generated from.
_THOUGHT = re.compile(r"(?:^(?:(?!<think>).)*?|<think>.*?)</think>", re.DOTALL)
_SNIPPET = 60


class SpecialTokens:
    """The special tokens of a model, which a text must not contain: they would be read as structure.

    In answers they would also be lost, since decoding leaves them out. Training and all checks share this rule.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        words = {*tokenizer.all_special_tokens}
        words |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # A test for their common prefix avoids the search in nearly all texts.
        self._prefix = os.path.commonprefix([*words])
        longest_first = sorted(words, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, longest_first), RESERVED_TOKENS.pattern]))

    def find_flaw(self, record: Record) -> str | None:
        """Return the reason why a record's texts, thoughts, calls or tools cannot be used, or None."""
        for number, turn in enumerate(record.turns):
            for text in (turn.text, turn.thought, turn.tool_calls):
                found = self._search(text)
                if found:
                    return f"turn {number} contains {found}, a special token of the model: {_remedy(found)}"
        found = self._search(record.tools)
        return found and f"`tools` contain {found}, a special token of the model: delete it"

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
    """Whether an answer has no thought."""
    return not (turn.thought and turn.thought.strip()) and THOUGHT_END not in turn.text


def find_missing_text(record: Record, rendered: str, header: str, end: str) -> str | None:
    """Return which text of a record is missing from its rendered chat and what to do, or None if all is there.

    `header` opens an answer and `end` closes it. White space next to the tags of a thought may differ. The thought of
    an answer that is context only may be missing, as at inference.
    """
    for tool in tools_of(record) or ():
        name = tool.get("function", tool).get("name")
        if not isinstance(name, str) or name not in rendered:
            return f"the chat template leaves out the tool {name!r}: use a model whose template supports tools"
    position = 0
    for number, turn in enumerate(record.turns):
        stop = rendered.find(header, position)
        if turn.role == "assistant":
            if stop < 0:
                return f"turn {number}: the chat template leaves out this answer"
            position = stop + len(header)
            stop = rendered.find(end, position)
        missing, position = _find_pieces(_pieces(turn), rendered, position, stop if stop >= 0 else len(rendered))
        if missing is not None:
            return _explain_missing(number, turn, missing)
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
    """Yield the name of a call and all values in its arguments, which templates write in different notations."""
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
    """Find the pieces in order; return the first missing piece, if any, and the end of the last one found."""
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
        elif not _differs_in_spaces_only(piece, rendered[position:stop]):
            return piece, position
    return None, position


def _differs_in_spaces_only(piece: str, rendered: str) -> bool:
    """Whether a template that parses thoughts and writes them again has changed white space only.

    If no tag opens the thought, the text before the closing tag may as well be the answer itself.
    """
    opens_with_thought = piece.startswith(THOUGHT_START) and THOUGHT_END in piece
    return opens_with_thought and "".join(piece.split()) in "".join(rendered.split())


def _explain_missing(number: int, turn: Turn, missing: str) -> str:
    snippet = missing if len(missing) <= _SNIPPET else f"{missing[: _SNIPPET - 3]}..."
    reason = f"turn {number}: the chat template does not write {snippet!r} unchanged"
    if turn.role == "assistant" and turn.thought and missing == turn.thought.strip():
        return f"{reason}: this thought needs a Thinking model (or leave it out, or write it into the answer itself)"
    if THOUGHT_END in turn.text or THOUGHT_START in turn.text:
        return (
            f"{reason}: an answer may have one thought, {THOUGHT_START}...{THOUGHT_END} at its beginning; move the "
            "thought there, or delete the tags"
        )
    if turn.tool_calls is not None:
        return f"{reason}: use a model whose template supports tool calls"
    return f"{reason}: use the model's own template, or leave this turn out"

"""Compute labels from token ids: the loss covers the assistant's turns only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from qwenvl.errors import UserError

IGNORE_INDEX = -100

_QUESTION = "Question"
_ANSWER = "Answer"


@dataclass(frozen=True)
class AssistantMarkers:
    """The token ids that delimit an assistant's turn in the model's own chat template.

    `header` opens every turn; `thought` may follow it, if the generation prompt opens a thought; `end` closes the turn.
    """

    header: tuple[int, ...]
    thought: tuple[int, ...]
    end: int

    @classmethod
    def from_processor(cls, processor: ProcessorMixin) -> "AssistantMarkers":
        """Find the markers by rendering small chats; raises `UserError` for a template without markers."""
        asked = processor.apply_chat_template([_message("user", _QUESTION)])
        prompt = processor.apply_chat_template([_message("user", _QUESTION)], add_generation_prompt=True)
        turns = [_message("user", _QUESTION), _message("assistant", _ANSWER)]
        first_turn, found, rest = processor.apply_chat_template(turns + turns).partition(_ANSWER)
        header = first_turn.removeprefix(asked)
        if not (found and first_turn.startswith(asked) and header and prompt.startswith(first_turn)):
            raise UserError(
                "the chat template does not delimit answers: expected the generation prompt to open the assistant's "
                f"turn, got the prompt {prompt!r} and the turn {first_turn + found!r}; use the model's own processor"
            )
        tokenizer = processor.tokenizer
        end = tokenizer(rest, add_special_tokens=False)["input_ids"][0]
        if end not in tokenizer.all_special_ids:
            raise UserError(
                f"the chat template closes an answer with {rest[:20]!r}, expected a special token; use the model's own "
                "processor"
            )
        texts = [header, prompt.removeprefix(first_turn)]
        header_ids, thought_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return cls(tuple(header_ids), tuple(thought_ids), end)


def make_labels(input_ids: torch.Tensor, markers: AssistantMarkers, supervised: Sequence[bool]) -> torch.Tensor:
    """Return labels (L,): the ids of each supervised assistant turn after its header, end token included; else -100.

    `input_ids` is (L,), one sample; `supervised` has one entry for each of its assistant turns, in their order. Raises
    `ValueError` if a different number of turns is found.
    """
    mask, _ = supervised_mask(np.asarray(input_ids), markers, np.asarray(supervised, dtype=bool))
    return input_ids.masked_fill(torch.from_numpy(~mask), IGNORE_INDEX)


def supervised_mask(
    ids: np.ndarray, markers: AssistantMarkers, supervised: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the ids (L,) the loss covers, as bool (L,), and the start of each assistant turn's header.

    `ids` may contain several samples one after another. A turn that is never closed is not counted. `supervised`, bool,
    has one entry per turn, True if it is covered (None: all are); raises `ValueError` for a wrong number of entries.
    """
    ends = np.flatnonzero(ids == markers.end)
    headers = _occurrences(ids, markers.header)
    headers = headers[headers < ends[-1]] if len(ends) else headers[:0]
    starts = headers + len(markers.header)
    if markers.thought:
        # Counted in tokens: in an empty thought, the line break may be merged with the next one into one token.
        starts = starts + len(markers.thought) * (ids[starts] == markers.thought[0])
    if supervised is not None:
        if len(headers) != len(supervised):
            raise ValueError(f"found {len(headers)} assistant turns among the tokens, expected {len(supervised)}")
        starts = starts[supervised]
    closed = ends[np.searchsorted(ends, starts)]
    edges = np.zeros(len(ids) + 1, dtype=np.int8)
    edges[starts] += 1
    np.subtract.at(edges, closed + 1, 1)
    return edges[:-1].cumsum(dtype=np.int8).astype(bool), headers


def _occurrences(ids: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Return the indices in `ids` at which the sequence `wanted` starts."""
    starts = np.flatnonzero(ids[: max(len(ids) - len(wanted) + 1, 0)] == wanted[0])
    for step, token in enumerate(wanted[1:], start=1):
        starts = starts[ids[starts + step] == token]
    return starts


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}

"""Decide which tokens the loss covers: token ids -> labels on the assistant's turns and on nothing else."""

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
    """The token ids that enclose an assistant's turn, as the model's own chat template writes them.

    `header` opens every turn; `thought` may follow it, where the generation prompt opens a thought; `end` closes it.
    """

    header: tuple[int, ...]
    thought: tuple[int, ...]
    end: int

    @classmethod
    def from_processor(cls, processor: ProcessorMixin) -> "AssistantMarkers":
        """Find the markers by rendering small chats; raises `UserError` for a template that has none."""
        asked = processor.apply_chat_template([_message("user", _QUESTION)])
        prompt = processor.apply_chat_template([_message("user", _QUESTION)], add_generation_prompt=True)
        turns = [_message("user", _QUESTION), _message("assistant", _ANSWER)]
        first_turn, found, rest = processor.apply_chat_template(turns + turns).partition(_ANSWER)
        header = first_turn.removeprefix(asked)
        if not (found and first_turn.startswith(asked) and header and prompt.startswith(first_turn)):
            raise UserError(
                "the chat template does not enclose answers: expected the generation prompt to open the assistant's "
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
    `ValueError` when another number of turns is found.
    """
    mask, _ = supervised_mask(np.asarray(input_ids), markers, np.asarray(supervised, dtype=bool))
    return input_ids.masked_fill(torch.from_numpy(~mask), IGNORE_INDEX)


def supervised_mask(
    ids: np.ndarray, markers: AssistantMarkers, supervised: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the ids (L,) the loss covers, as bool (L,), and where each assistant turn's header starts.

    `ids` may hold several samples one after another. A turn that is never closed is not counted. `supervised`, bool,
    says of each turn whether it is covered (None: all are); raises `ValueError` when it is for another number of turns.
    """
    ends = np.flatnonzero(ids == markers.end)
    headers = _occurrences(ids, markers.header)
    headers = headers[headers < ends[-1]] if len(ends) else headers[:0]
    starts = headers + len(markers.header)
    if markers.thought:
        # Counted in tokens: where a thought is empty, its line break may be one token together with the next one.
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
    """Return the places in `ids` where the sequence `wanted` starts."""
    places = np.flatnonzero(ids[: max(len(ids) - len(wanted) + 1, 0)] == wanted[0])
    for step, token in enumerate(wanted[1:], start=1):
        places = places[ids[places + step] == token]
    return places


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}

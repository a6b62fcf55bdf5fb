"""Collate samples into a batch: padded rows or one flattened row, with the media of all samples joined.

Shapes: B rows of L tokens; a flattened batch has B = 1 and its samples one after another.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from qwenvl.data.annotations import BadSample
from qwenvl.data.labels import IGNORE_INDEX

# For each kind of medium, the keys of its pixels and of its grids.
MEDIA_KEYS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}

Sample = dict[str, Any]


@dataclass
class BatchMeta:
    """Counts of a batch; padding samples and dummies count neither as samples nor as tokens, but as padding."""

    indices: list[int] = field(default_factory=list)
    num_samples: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_padding: int = 0
    bad: list[BadSample] = field(default_factory=list)


@dataclass
class _Collator(ABC):
    """Base of both collators.

    `dummies` has a blank sample for each kind of medium ("image", "video") and a text-only one ("text"). A batch that
    lacks one of `required_kinds` gets its dummy, so that all processes call the vision tower equally often (DDP and
    ZeRO-3 synchronize there). A batch without a usable sample consists of the text-only dummy.

    `placeholders` holds the token that stands for each kind. `layout_of` works out what the vision tower needs to
    know of the grids of one kind, here in a data worker.
    """

    dummies: Mapping[str, Sample]
    required_kinds: Sequence[str] = ()
    placeholders: Mapping[str, int] = field(default_factory=dict)
    layout_of: Callable[[torch.Tensor], Any] | None = None

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Join the samples without those that could not be loaded, and describe the batch under "meta"."""
        usable = [sample for sample in samples if "bad" not in sample]
        members = usable + self._dummies_for(usable)
        batch = self._rows(members) | join_media(members)
        batch |= _supervision(batch.pop("labels"))
        for kind, token in self.placeholders.items():
            pixels, grids = MEDIA_KEYS[kind]
            if pixels in batch:
                batch[f"{kind}_rows"] = (batch["input_ids"].flatten() == token).nonzero().flatten()
                if self.layout_of is not None:
                    batch.setdefault("layouts", {})[kind] = self.layout_of(batch[grids])
        counted = [sample for sample in usable if not sample["is_padding"]]
        num_tokens = sum(len(sample["input_ids"]) for sample in counted)
        batch["meta"] = BatchMeta(
            indices=[sample["index"] for sample in counted],
            num_samples=len(counted),
            num_tokens=num_tokens,
            num_supervised=len(batch["targets"]),
            num_padding=batch["input_ids"].numel() - num_tokens,
            bad=[sample["bad"] for sample in samples if "bad" in sample],
        )
        return batch

    def _dummies_for(self, samples: Sequence[Sample]) -> list[Sample]:
        missing = [kind for kind in self.required_kinds if not any(MEDIA_KEYS[kind][0] in sample for sample in samples)]
        if not samples and not missing:
            missing = ["text"]
        return [self.dummies[kind] for kind in missing]

    @abstractmethod
    def _rows(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the tokens, labels and positions of the samples as rows."""


@dataclass
class DataCollatorForSupervisedDataset(_Collator):
    """One row per sample, padded on the right with `pad_token_id`."""

    pad_token_id: int = 0

    def _rows(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return input_ids, labels and attention_mask (B, L), and position_ids (4, B, L)."""
        input_ids = [sample["input_ids"] for sample in samples]
        positions = [text_and_mrope_positions(sample).T for sample in samples]
        return {
            "input_ids": pad_sequence(input_ids, batch_first=True, padding_value=self.pad_token_id),
            "labels": pad_sequence([_labels(sample) for sample in samples], True, IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
            "position_ids": pad_sequence(positions, batch_first=True).permute(2, 0, 1).contiguous(),
        }


@dataclass
class FlattenedDataCollatorForSupervisedDataset(_Collator):
    """All samples in one row, without a mask: text positions restart at 0 for each sample and separate them.

    `varlen` adds `text_cu_seqlens` (n + 1,) int32 and `text_max_seqlen`, the boundaries for variable-length attention
    kernels.
    """

    varlen: bool = False

    def _rows(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return input_ids and labels (1, L), and position_ids (4, 1, L)."""
        batch: dict[str, Any] = {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "labels": torch.cat([_labels(sample) for sample in samples])[None],
            "position_ids": torch.cat([text_and_mrope_positions(sample) for sample in samples], dim=1)[:, None],
        }
        if self.varlen:
            lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
            batch["text_cu_seqlens"] = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
            batch["text_max_seqlen"] = int(lengths.max())
        return batch


def join_media(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Concatenate the pixels and grids of all samples along dimension 0, each kind in the order of the samples."""
    keys = [key for pair in MEDIA_KEYS.values() for key in pair]
    found = {key: [sample[key] for sample in samples if key in sample] for key in keys}
    return {key: torch.cat(tensors) for key, tensors in found.items() if tensors}


def text_and_mrope_positions(sample: Sample) -> torch.Tensor:
    """Return (4, L): the index of each token, from which attention infers the samples, above M-RoPE's three rows.

    The temporal row cannot replace the first one: it is constant within an image, which would look like a boundary.
    """
    return torch.cat([torch.arange(len(sample["input_ids"]))[None], sample["position_ids"]])


def _labels(sample: Sample) -> torch.Tensor:
    """Return the labels without that of the first token, which only a token of the previous sample could predict."""
    return F.pad(sample["labels"][1:], (1, 0), value=IGNORE_INDEX)


def _supervision(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the T supervised tokens of `labels` (B, L) as "targets" (T,), and the positions that predict them.

    "supervised_rows" (T,) are positions in the flattened (B * L) tokens: the label at t is predicted from t - 1.
    """
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return {"supervised_rows": rows * labels.shape[1] + columns, "targets": labels[rows, columns + 1]}

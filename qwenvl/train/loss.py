"""Compute the loss from the logits of the supervised positions, as the mean over the global batch."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwenvl.data.labels import IGNORE_INDEX

# Rows of logits per chunk of the softmax, which bounds the float32 copy: (512, 151936) is 0.3 GiB.
_ROWS_AT_A_TIME = 512


def supervised_targets(labels: torch.Tensor) -> torch.Tensor:
    """Return the tokens to predict, (T,), in the order in which `logits_to_keep` picks the positions that predict them.

    `labels` is (B, L); the label at position t is predicted from position t - 1.
    """
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy summed over all rows, in float32, without a float32 copy of all logits.

    `logits` is (T, V), `targets` (T,). Zero rows give a zero that still carries a graph, so that a process without
    supervised tokens takes part in the backward pass.
    """
    total = logits.sum(dtype=torch.float32) * 0 if len(targets) == 0 else logits.new_zeros((), dtype=torch.float32)
    for rows, wanted in zip(logits.split(_ROWS_AT_A_TIME), targets.split(_ROWS_AT_A_TIME), strict=True):
        total = total + checkpoint(_cross_entropy_sum, rows, wanted, use_reentrant=False)
    return total


def _cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def supervised_loss(
    outputs: CausalLMOutputWithPast, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Return this batch's share of the mean loss over the supervised tokens of the global batch.

    `outputs.logits` is (T, V): the supervised positions alone. `num_items_in_batch` counts the supervised tokens of all
    processes and accumulation steps of one optimizer step; the Trainer sums the shares. Left out, the mean is over this
    batch.
    """
    targets = supervised_targets(labels)
    total = summed_cross_entropy(outputs.logits, targets)
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)

"""Continue after a GPU ran out of memory where that is possible, and say what to change where it is not."""

import logging

import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments

logger = logging.getLogger(__name__)


def checkpoint_activations_after(
    error: torch.OutOfMemoryError, model: nn.Module, args: TrainingArguments, step: int, *, has_gradients: bool
) -> None:
    """Switch gradient checkpointing on, so that the micro-batch can be run again; its gradients are dropped.

    Raises `UserError` if keeping all activations was not this program's choice, and if the gradients of the failed
    micro-batch cannot be told from others: `has_gradients` of micro-batches before it, or processes that have already
    added theirs.
    """
    reason = " ".join(str(error).split())[:200]
    is_chosen = args.checkpoints_if_needed and not args.activation_checkpointing
    if not is_chosen or has_gradients or args.world_size > 1:
        raise UserError(
            f"out of memory at step {step} ({reason}); set --gradient_checkpointing True, or lower "
            "--model_max_length or --max_pixels (--dry_run True shows what takes the memory)"
        ) from error
    logger.warning("out of memory at step %d: layers' activations are recomputed from here on (%s)", step, reason)
    args.checkpoint_activations()
    model.gradient_checkpointing_enable(args.activation_checkpointing_kwargs)
    model.zero_grad()

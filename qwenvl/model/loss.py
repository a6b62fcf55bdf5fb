"""Compute the loss inside the model's forward pass, from the hidden states of the supervised positions.

B rows of L tokens, T supervised positions in all rows, D text width, V vocabulary entries.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from qwenvl.model.forward import hidden_states

LossAndGradient = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Positions whose logits exist at a time: (1024, 151936) are 0.3 GiB in bf16, and twice that in float32.
ROWS_AT_A_TIME = 1024


class SupervisedHead(nn.Linear):
    """The head of a language model, which can also compute the loss without holding all logits.

    `loss_and_gradient` works on the logits of one piece; it may be compiled.
    """

    loss_and_gradient: LossAndGradient

    def forward(self, states: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """Return the logits (..., V); with `targets` (T,), the sums of `linear_cross_entropy` for (T, D)."""
        if targets is None:
            return super().forward(states)
        return linear_cross_entropy(states, self.weight, targets, self.loss_and_gradient)


class ComputesLoss:
    """A model class whose forward pass returns the loss where the batch says what is supervised."""

    def forward(
        self,
        *args: Any,
        supervised_rows: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what the model returns, or with `targets` {"loss", "correct"}: the sums over the supervised tokens.

        `supervised_rows` (T,) are the positions in the flattened (B * L) tokens that predict `targets` (T,).
        """
        if targets is None:
            return super().forward(*args, **kwargs)
        rows = hidden_states(self.model, *args, **kwargs).flatten(0, 1).index_select(0, supervised_rows)
        loss, correct = self.lm_head(rows, targets)
        return {"loss": loss, "correct": correct}


def compute_loss_in_forward(model: PreTrainedModel) -> None:
    """Let a Qwen3-VL of any class take `supervised_rows` and `targets`, in place; its weights and class name stay."""
    model_class = type(model)
    model.__class__ = type(model_class.__name__, (ComputesLoss, model_class), {"__module__": model_class.__module__})
    model.lm_head.__class__ = SupervisedHead
    model.lm_head.loss_and_gradient = piece_loss_and_gradient


def linear_cross_entropy(
    states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, loss_and_gradient: LossAndGradient | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy summed over T rows, float32, and the number of rows whose largest logit is the target.

    `states` is (T, D), `weight` (V, D), `targets` (T,). Logits live for a piece of the rows at a time, and their
    gradient is taken at once, as in Liger Kernel (https://arxiv.org/abs/2410.10989); a frozen `weight` gets none.
    """
    dtype = weight.dtype
    if torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
    if not torch.is_grad_enabled():
        states, weight = states.detach(), weight.detach()
    return _LinearCrossEntropy.apply(
        states.to(dtype), weight.to(dtype), targets, loss_and_gradient or piece_loss_and_gradient
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        loss_and_gradient: LossAndGradient,
    ) -> Any:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=weight.device)
        correct = torch.zeros((), dtype=torch.int64, device=weight.device)
        hidden_gradient = torch.empty_like(states) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        with torch.autocast(weight.device.type, enabled=False):
            for start in range(0, len(targets), ROWS_AT_A_TIME):
                piece = slice(start, start + ROWS_AT_A_TIME)
                logits = F.linear(states[piece], weight)
                if not (needs_hidden or needs_weight):
                    correct += (logits.argmax(-1) == targets[piece]).sum()
                    loss += F.cross_entropy(logits.float(), targets[piece], reduction="sum")
                    continue
                piece_loss, gradient = loss_and_gradient(logits, targets[piece])
                loss += piece_loss
                if needs_hidden:
                    torch.mm(gradient, weight, out=hidden_gradient[piece])
                if needs_weight:
                    weight_gradient += gradient.T @ states[piece]
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtype = weight.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, loss_gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        # In float32: one over the number of tokens would lose its last digits in bf16, alike for all gradients.
        gradients = [None if each is None else (each.float() * loss_gradient) for each in ctx.saved_tensors]
        return *(None if each is None else each.to(ctx.dtype) for each in gradients), None, None


def piece_loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of logits (R, V), and its gradient in their precision."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    loss = F.nll_loss(log_probabilities, targets, reduction="sum")
    gradient = log_probabilities.exp_()
    gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
    return loss, gradient.to(logits.dtype)

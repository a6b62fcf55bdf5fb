"""Hold frozen linear layers in FP8 and multiply in it, forward and backward.

M rows of tokens, K inputs, N outputs. Values are float8_e4m3fn with one float32 scale a row, as in torchao's "rowwise"
recipe (https://github.com/pytorch/ao/tree/main/torchao/float8), which differs in that it also takes the gradient of the
weight and casts the weight in each step; a frozen weight needs neither.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import ScalingType, scaled_mm

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
# Gradients have rows of 1e-6 and less: a larger floor would round them to zero.
_SMALLEST_SCALE = 1e-12


class Fp8Linear(nn.Linear):
    """A frozen linear layer whose weight (N, K) is FP8, with a scale for each output."""

    weight_scale: torch.Tensor

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return (..., N) in bf16 for states (..., K)."""
        rows = states.flatten(0, -2).to(torch.bfloat16)
        output = fp8_linear(rows, *quantize_rows(rows.detach()), self.weight, self.weight_scale)
        output = output if self.bias is None else output + self.bias
        return output.unflatten(0, states.shape[:-1])


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (M, K) in FP8 and their scales (M, 1), which times the values give the rows back."""
    rows = rows.float()
    scale = (rows.abs().amax(-1, keepdim=True) / _LARGEST).clamp(min=_SMALLEST_SCALE)
    return (rows / scale).to(FP8), scale


# Operators of their own, because torch.compile cannot trace `scaled_mm` in PyTorch 2.11: it would cut each layer into
# pieces. Can go with a version whose torch/_dynamo/trace_rules.py knows `_scaled_mm_v2`.
@torch.library.custom_op("qwenvl::scaled_product", mutates_args=())
def scaled_product(
    values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """Return (M, N) in bf16: FP8 values (M, K) with scales (M, 1), times a weight (N, K) with scales (N, 1)."""
    return scaled_mm(
        values,
        weight.t(),
        scale_a=scale,
        scale_recipe_a=ScalingType.RowWise,
        scale_b=weight_scale.t(),
        scale_recipe_b=ScalingType.RowWise,
        output_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


@scaled_product.register_kernel("cpu")
def _(values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    return ((values.float() * scale) @ (weight.float() * weight_scale).t()).to(torch.bfloat16)


@scaled_product.register_fake
def _(values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    return values.new_empty((values.shape[0], weight.shape[0]), dtype=torch.bfloat16)


@torch.library.custom_op("qwenvl::fp8_linear", mutates_args=())
def fp8_linear(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """Return what `scaled_product` does; `rows` (M, K) are what `values` and `scale` hold, and get the gradient."""
    return scaled_product(values, scale, weight, weight_scale)


@fp8_linear.register_fake
def _(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[0]), dtype=torch.bfloat16)


def _keep_weight(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[3:])


def _gradient_of_rows(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    weight, weight_scale = ctx.saved_tensors
    # The sum is over the outputs, whose scales therefore go into the gradient.
    values, scale = quantize_rows(gradient.float() * weight_scale.t())
    ones = torch.ones(weight.shape[1], 1, device=weight.device, dtype=torch.float32)
    # As bytes, because compiled copies of bytes are quick.
    transposed = weight.view(torch.uint8).t().contiguous().view(FP8)
    return scaled_product(values, scale, transposed, ones), None, None, None, None


fp8_linear.register_autograd(_gradient_of_rows, setup_context=_keep_weight)


def hold_in_fp8(module: nn.Module, device: torch.device) -> int:
    """Turn every frozen linear layer inside `module` into an `Fp8Linear` on `device`, in place; return how many.

    Each weight goes to the device by itself, so that a whole bf16 copy never stands there. Those without memory (meta
    device) stay where they are.
    """
    count = 0
    for linear in module.modules():
        if type(linear) is not nn.Linear or linear.weight.requires_grad:
            continue
        weight = linear.weight.data
        values, scale = quantize_rows(weight if weight.is_meta else weight.to(device))
        linear.__class__ = Fp8Linear
        linear.weight = nn.Parameter(values, requires_grad=False)
        linear.register_buffer("weight_scale", scale, persistent=False)
        count += 1
    return count

"""Hold frozen linear layers in 4 bits by bitsandbytes: NF4 with double quantization (https://arxiv.org/abs/2305.14314)."""

from collections.abc import Iterator

import torch
from torch import nn


def hold_in_nf4(module: nn.Module, device: torch.device) -> int:
    """Replace every frozen linear layer inside `module` by bitsandbytes' `Linear4bit` on `device`; return how many.

    Each weight goes to the device by itself and is quantized there. A layer without weights (meta device) gets an
    empty weight of the packed shape. `Linear4bit` computes in bf16, forward and backward.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # an extra, and slow to import

    found = list(_frozen_linear_layers(module))
    for parent, name in found:
        linear = getattr(parent, name)
        with torch.device("meta"):
            held = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=True,
                quant_type="nf4",
            )
        if linear.weight.is_meta:
            packed = torch.empty((linear.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
            held.weight = nn.Parameter(packed, requires_grad=False)
        else:
            weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=held)
            held.weight = weight.to(device)
        held.bias = linear.bias
        setattr(parent, name, held)
    return len(found)


def _frozen_linear_layers(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the parent and name of each, not the layer itself, whose weight is to be freed when it is replaced."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and not child.weight.requires_grad:
                yield parent, name

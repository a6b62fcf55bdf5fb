"""Samples that share a row, on a GPU in bf16, attend as they do alone.

Tolerance 1 % of the outputs' norm and 2 % of the gradients': two kernels, whose sums bf16 rounds to 0.4 %.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qwenvl.model.attention import varlen_attention
from tests.gpu.compare import DEVICE, NEEDS_GPU, relative_error

pytestmark = NEEDS_GPU
LENGTHS = (300, 1, 77, 512)
HEADS, KEY_HEADS, WIDTH = 8, 2, 128
OUTPUT, GRADIENTS = 0.01, 0.02


@pytest.mark.parametrize("boundaries_from", ["the batch", "positions"])
def test_packed_samples_attend_as_separate_ones(boundaries_from: str) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    states = [
        torch.randn(1, heads, total, WIDTH, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    upstream = torch.randn(1, total, HEADS, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    if boundaries_from == "the batch":
        starts = torch.tensor((0, *LENGTHS)).cumsum(0)
        inputs = {"text_cu_seqlens": starts.to(DEVICE, torch.int32), "text_max_seqlen": max(LENGTHS)}
    else:
        inputs = {"position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None].to(DEVICE)}
    packed, _ = varlen_attention(nn.Identity(), *states, None, scaling=WIDTH**-0.5, **inputs)
    gradients = torch.autograd.grad(packed, states, upstream)

    parts = [each.split(LENGTHS, dim=2) for each in states]
    alone = [
        F.scaled_dot_product_attention(*sample, is_causal=True, enable_gqa=True) for sample in zip(*parts, strict=True)
    ]
    separate = torch.cat(alone, dim=2).transpose(1, 2)
    expected = torch.autograd.grad(separate, states, upstream)
    assert relative_error(packed, separate) < OUTPUT
    for found, reference in zip(gradients, expected, strict=True):
        assert relative_error(found, reference) < GRADIENTS

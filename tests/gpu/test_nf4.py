"""Layers in NF4 on a GPU against bf16. Tolerance 15 %: four bits of normal noise are 9 % off."""

import pytest
import torch
from torch import nn

from qwenvl.model.nf4 import hold_in_nf4
from tests.gpu.compare import DEVICE, NEEDS_GPU, relative_error

pytestmark = NEEDS_GPU
TOLERANCE = 0.15


@pytest.mark.parametrize("compiled", [False, True])
def test_product_and_gradient_are_those_of_bf16_in_a_quarter_of_the_memory(compiled: bool) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1024, 2048, bias=False, dtype=torch.bfloat16)).requires_grad_(False)
    states = torch.randn(100, 1024, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(100, 2048, device=DEVICE, dtype=torch.bfloat16)
    plain = nn.functional.linear(states, module[0].weight.to(DEVICE))
    expected = plain, torch.autograd.grad(plain, states, upstream)[0]
    before = torch.cuda.memory_allocated()
    assert hold_in_nf4(module, DEVICE) == 1
    assert torch.cuda.memory_allocated() - before < 0.6 * 1024 * 2048
    if compiled:
        module[0].compile(dynamic=True)
    output = module(states)
    for found, reference in zip((output, torch.autograd.grad(output, states, upstream)[0]), expected, strict=True):
        assert 0 < relative_error(found, reference) < TOLERANCE

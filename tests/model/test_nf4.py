"""NF4 layers: the product and the gradient are those of the weights within four bits (needs the extra `quant`)."""

import pytest
import torch
from torch import nn

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [False, True])
def test_nf4_layers_give_the_product_and_gradient_of_their_weights(bias: bool) -> None:
    """Tolerance 15 %: four bits of a normal distribution are 9 % off, and what is asked is that no sign or row is."""
    pytest.importorskip("bitsandbytes")
    from qwenvl.model.nf4 import hold_in_nf4

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96, bias=bias, dtype=torch.bfloat16)).requires_grad_(False)
    states = torch.randn(40, 64, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(40, 96, dtype=torch.bfloat16)
    found = []
    for _ in range(2):
        output = module(states)
        (gradient,) = torch.autograd.grad((output * weights).sum(), states)
        found.append((output.detach().float(), gradient.float()))
        if type(module[0]) is nn.Linear:
            assert hold_in_nf4(module, CPU) == 1
    assert module[0].weight.dtype == torch.uint8 and module[0].weight.numel() == 64 * 96 / 2
    for plain, held in zip(*found, strict=True):
        assert 0 < (held - plain).norm() / plain.norm() < 0.15

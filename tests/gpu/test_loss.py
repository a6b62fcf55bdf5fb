"""The loss in pieces, on a GPU in bf16, against plain cross-entropy in float32 of the same values.

Tolerance 0.1 % of the loss and 1 % of the gradients: logits and gradients are rounded to bf16, 0.4 %, and averaged out.
"""

import pytest
import torch
from torch.nn import functional as F

from qwenvl.model.loss import linear_cross_entropy, piece_loss_and_gradient
from tests.gpu.compare import DEVICE, NEEDS_GPU, relative_error

pytestmark = NEEDS_GPU
ROWS, WIDTH, VOCABULARY = 2500, 256, 8192
LOSS, GRADIENTS = 1e-3, 0.01


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_are_those_of_one_cross_entropy(compiled: bool, trained_head: bool) -> None:
    torch.manual_seed(0)
    states = torch.randn(ROWS, WIDTH, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, device=DEVICE, dtype=torch.bfloat16) / WIDTH**0.5
    weight.requires_grad_(trained_head)
    targets = torch.randint(VOCABULARY, (ROWS,), device=DEVICE)
    piece = torch.compile(piece_loss_and_gradient, dynamic=True) if compiled else piece_loss_and_gradient
    total, correct = linear_cross_entropy(states, weight, targets, piece)
    (total / ROWS).backward()

    exact_states, exact_weight = (each.detach().float().requires_grad_() for each in (states, weight))
    logits = exact_states @ exact_weight.T
    plain = F.cross_entropy(logits, targets)
    plain.backward()
    assert total.item() / ROWS == pytest.approx(plain.item(), rel=LOSS)
    assert abs(correct.item() - (logits.argmax(-1) == targets).sum().item()) <= 2
    assert relative_error(states.grad, exact_states.grad) < GRADIENTS
    if trained_head:
        assert relative_error(weight.grad, exact_weight.grad) < GRADIENTS
    else:
        assert weight.grad is None

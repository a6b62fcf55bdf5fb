"""The loss inside the forward pass is that of plain cross-entropy over all logits, with its gradients."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from qwenvl.model import loss
from qwenvl.model.loss import SupervisedHead, compute_loss_in_forward, linear_cross_entropy

ROWS, WIDTH, VOCABULARY = 1300, 16, 23


def values(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    states = torch.randn(ROWS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    return states, weight, torch.randint(VOCABULARY, (ROWS,))


def test_many_rows_in_pieces_give_the_loss_and_gradients_of_one_cross_entropy():
    states, weight, targets = values()
    total, correct = linear_cross_entropy(states, weight, targets)
    (total / 7).backward()

    plain_states, plain_weight, _ = (each.detach().double() for each in values())
    plain_states.requires_grad_(), plain_weight.requires_grad_()
    plain = F.cross_entropy(plain_states @ plain_weight.T, targets, reduction="sum")
    (plain / 7).backward()
    torch.testing.assert_close(total.double(), plain)
    torch.testing.assert_close(states.grad.double(), plain_states.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weight.grad.double(), plain_weight.grad, atol=1e-5, rtol=1e-5)


def test_the_loss_without_a_gradient_counts_the_rows_that_are_right():
    states, weight, targets = values()
    with torch.no_grad():
        total, correct = linear_cross_entropy(states, weight, targets)
    logits = states @ weight.T
    torch.testing.assert_close(total, F.cross_entropy(logits, targets, reduction="sum"))
    assert correct.item() == (logits.argmax(-1) == targets).sum().item() > 0


def test_a_frozen_head_gets_no_gradient_and_none_is_computed(monkeypatch: pytest.MonkeyPatch):
    states, weight, targets = values()
    linear_cross_entropy(states, weight.detach(), targets)[0].backward()
    assert states.grad is not None and weight.grad is None


def test_the_gradient_is_scaled_in_float32_before_it_is_rounded():
    # 1/3 in bf16 is 0.334: all gradients would be 0.2 % too large.
    states, weight, targets = values(torch.bfloat16)
    (linear_cross_entropy(states, weight, targets)[0] / 3).backward()
    scaled = states.grad.clone()
    states.grad = None
    linear_cross_entropy(states, weight, targets)[0].backward()
    expected = (states.grad.float() / 3).to(torch.bfloat16)
    assert torch.equal(scaled, expected)


def test_a_batch_without_supervised_tokens_gives_a_zero_that_can_be_differentiated():
    states = torch.empty(0, WIDTH, requires_grad=True)
    total, _ = linear_cross_entropy(states, torch.randn(VOCABULARY, WIDTH), torch.empty(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0 and states.grad.shape == (0, WIDTH)


def test_autocast_multiplies_in_its_precision():
    states, weight, targets = values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = linear_cross_entropy(states, weight, targets)
    total.backward()
    assert total.dtype == torch.float32 and weight.grad.dtype == torch.float32
    exact = F.cross_entropy(states @ weight.T, targets, reduction="sum")
    assert total.item() == pytest.approx(exact.item(), rel=1e-2) and total.item() != exact.item()


def test_the_logits_of_all_rows_never_exist_at_once(monkeypatch: pytest.MonkeyPatch):
    most = []
    linear = F.linear

    def watched(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        most.append(len(rows))
        return linear(rows, weight)

    monkeypatch.setattr(loss.F, "linear", watched)
    states, weight, targets = values()
    linear_cross_entropy(states, weight, targets)
    assert max(most) <= 1024 and sum(most) == ROWS


def test_a_model_keeps_its_class_name_its_logits_and_its_weights(standin: Path):
    model = AutoModelForImageTextToText.from_pretrained(standin).eval()
    names, class_name = list(model.state_dict()), type(model).__name__
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        compute_loss_in_forward(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert list(model.state_dict()) == names and type(model).__name__ == class_name
    assert isinstance(model.lm_head, SupervisedHead)


def test_the_forward_pass_sums_the_loss_of_the_supervised_rows_of_all_samples(standin: Path):
    model = AutoModelForImageTextToText.from_pretrained(standin).eval()
    model.config.text_config.use_cache = False
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    logits = model(input_ids=ids).logits
    compute_loss_in_forward(model)
    positions = torch.arange(4).expand(4, 2, 4).contiguous()
    sums = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=positions,
        supervised_rows=torch.tensor([1, 6]),
        targets=torch.tensor([7, 12]),
    )
    expected = F.cross_entropy(logits[[0, 1], [1, 2]], torch.tensor([7, 12]), reduction="sum")
    torch.testing.assert_close(sums["loss"], expected)

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.train.loss import supervised_loss, supervised_targets

VOCAB = 11


def _labels() -> torch.Tensor:
    labels = torch.full((2, 6), IGNORE_INDEX)
    labels[0, 2:4] = torch.tensor([3, 4])
    labels[1, 5] = 7
    return labels


def _kept_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    keep = F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))
    return logits[keep]


def test_targets_are_in_the_order_of_the_kept_positions() -> None:
    assert supervised_targets(_labels()).tolist() == [3, 4, 7]


def test_the_loss_equals_the_mean_over_all_positions_with_ignored_labels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, VOCAB), _labels()

    loss = supervised_loss(CausalLMOutputWithPast(logits=_kept_logits(logits, labels)), labels)

    reference = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss.double(), reference)


def test_the_shares_of_two_batches_add_up_to_the_mean_over_both() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, VOCAB), _labels()
    count = torch.tensor(3)

    shares = [
        supervised_loss(CausalLMOutputWithPast(logits=_kept_logits(logits[[i]], labels[[i]])), labels[[i]], count)
        for i in range(2)
    ]

    whole = supervised_loss(CausalLMOutputWithPast(logits=_kept_logits(logits, labels)), labels)
    torch.testing.assert_close(sum(shares), whole)


def test_many_rows_in_chunks_give_the_gradient_of_one_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1300, VOCAB, requires_grad=True)
    labels = torch.cat([torch.tensor([IGNORE_INDEX]), torch.randint(VOCAB, (1300,))])[None]

    supervised_loss(CausalLMOutputWithPast(logits=logits), labels).backward()

    reference = logits.detach().double().requires_grad_()
    F.cross_entropy(reference, labels[0, 1:]).backward()
    torch.testing.assert_close(logits.grad.double(), reference.grad, atol=1e-8, rtol=1e-5)


def test_a_batch_without_supervised_tokens_gives_a_zero_that_can_be_differentiated() -> None:
    logits = torch.empty(0, VOCAB, requires_grad=True)

    loss = supervised_loss(CausalLMOutputWithPast(logits=logits * 2), torch.full((1, 4), IGNORE_INDEX))
    loss.backward()

    assert loss.item() == 0
    assert logits.grad.shape == (0, VOCAB)

"""What an out-of-memory error changes in a model and its arguments; test_trainer shows how the step goes on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.train.out_of_memory import checkpoint_activations_after

ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate 594.00 MiB.")


class Model(nn.Linear):
    """A model that notes how checkpointing was switched on."""

    settings: dict | None = None

    def gradient_checkpointing_enable(self, settings: dict) -> None:
        self.settings = settings


def arguments(**changed: object) -> SimpleNamespace:
    values = {"checkpoints_if_needed": True, "activation_checkpointing": False, "world_size": 1}
    args = SimpleNamespace(**values | changed, activation_checkpointing_kwargs={"use_reentrant": False})
    args.checkpoint_activations = lambda: vars(args).update(activation_checkpointing=True)
    return args


def test_activations_are_recomputed_and_gradients_of_the_failed_attempt_are_dropped() -> None:
    model, args = Model(2, 2), arguments()
    model(torch.ones(1, 2)).sum().backward()

    checkpoint_activations_after(ERROR, model, args, 1, has_gradients=False)

    assert args.activation_checkpointing and model.settings == {"use_reentrant": False}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changed", "has_gradients"),
    [
        ({"checkpoints_if_needed": False}, False),
        ({"activation_checkpointing": True}, False),
        ({"world_size": 2}, False),
        ({}, True),
    ],
    ids=["choice of the user", "recomputed already", "several processes", "gradients of micro-batches before"],
)
def test_where_nothing_can_be_done_it_is_one_line_with_a_remedy(changed: dict, has_gradients: bool) -> None:
    model = Model(2, 2)
    message = r"out of memory at step 3 \(CUDA .*Tried to allocate 594.00 MiB.\); set --gradient_checkpointing True"
    with pytest.raises(UserError, match=message):
        checkpoint_activations_after(ERROR, model, arguments(**changed), 3, has_gradients=has_gradients)
    assert model.settings is None

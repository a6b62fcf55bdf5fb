"""Values of a step are read one step later, each once."""

import math

import pytest
import torch

from qwenvl.train.finite import StepRecorder, StepValues


def test_a_step_is_returned_with_its_samples_when_the_next_is_recorded():
    recorder = StepRecorder()
    assert recorder.record(1, [4, 5], torch.tensor(0.5), {"llm": torch.tensor(2.0)}) is None
    first = recorder.record(2, [6], torch.tensor(math.nan), {})
    assert first == StepValues(1, [4, 5], 0.5, {"llm": 2.0})
    last = recorder.read()
    assert last.step == 2 and math.isnan(last.loss)
    assert recorder.read() is None


def test_what_is_recorded_does_not_change_with_the_tensor_it_came_from():
    recorder, norm = StepRecorder(), torch.tensor(3.0)
    recorder.record(1, [], torch.tensor(0.5), {"llm": norm})
    norm.zero_()
    assert recorder.read().gradient_norms == {"llm": 3.0}


@pytest.mark.parametrize(
    ("loss", "norm", "loss_alone", "found"),
    [
        (1.0, 2.0, False, None),
        (math.inf, 2.0, True, "loss inf"),
        (1.0, math.nan, False, "gradient norms {'llm': nan}"),
        (1.0, math.nan, True, None),
    ],
)
def test_the_loss_is_looked_at_always_and_gradient_norms_unless_left_out(
    loss: float, norm: float, loss_alone: bool, found: str | None
) -> None:
    assert StepValues(1, [], loss, {"llm": norm}).find_non_finite(loss_alone=loss_alone) == found

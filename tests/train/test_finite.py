"""Values of a step are read one step later, each once."""

import math

import torch

from qwenvl.train.finite import StepRecorder


def test_a_step_is_returned_with_its_samples_when_the_next_is_recorded():
    recorder = StepRecorder()
    assert recorder.record(1, [4, 5], {"loss": torch.tensor(0.5), "llm": torch.tensor(2.0)}) is None
    first = recorder.record(2, [6], {"loss": torch.tensor(math.nan)})
    assert (first.step, first.sample_indices, first.values) == (1, [4, 5], {"loss": 0.5, "llm": 2.0})
    last = recorder.read()
    assert last.step == 2 and math.isnan(last.values["loss"])
    assert recorder.read() is None


def test_what_is_recorded_does_not_change_with_the_tensor_it_came_from():
    recorder, norm = StepRecorder(), torch.tensor(3.0)
    recorder.record(1, [], {"llm": norm})
    norm.zero_()
    assert recorder.read().values == {"llm": 3.0}

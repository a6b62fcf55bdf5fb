"""The merger: shapes, and a start that the language model can bear."""

import pytest
import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.vision import MERGERS, SimpleVisionMerger
from qwenvl.vision.merger import build_merger, register_merger


@pytest.mark.parametrize("kind", MERGERS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 1369), (13,)])
def test_any_number_of_tokens_keeps_its_shape(kind, shape):
    merger = build_merger(kind, 6, 10)
    assert merger(torch.randn(*shape, 6)).shape == (*shape, 10)


def test_simple_merger_is_one_linear_layer_called_proj():
    merger = SimpleVisionMerger(6, 10)
    assert {name: tuple(value.shape) for name, value in merger.state_dict().items()} == {
        "proj.weight": (10, 6),
        "proj.bias": (10,),
    }
    assert isinstance(merger.proj, nn.Linear)
    x = torch.randn(2, 3, 6)
    assert torch.equal(merger(x), merger.proj(x))


@pytest.mark.parametrize("kind", MERGERS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_calibrated_tokens_have_the_length_of_words_whatever_the_features(kind, scale):
    merger = build_merger(kind, 32, 48)
    features = scale * torch.randn(1, 50, 32)
    merger.calibrate(features, target_rms=0.02)
    assert merger(features).square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-3)


def test_unknown_merger_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="--vision_merger big: expected one of simple, norm_linear, mlp2"):
        build_merger("big", 2, 2)


def test_a_merger_name_is_registered_once() -> None:
    with pytest.raises(UserError, match="merger 'simple' is already registered by SimpleVisionMerger"):
        register_merger("simple")(SimpleVisionMerger)

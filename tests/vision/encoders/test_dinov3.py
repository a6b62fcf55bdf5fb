"""DINOv3: ViTs with registers, and ConvNeXts whose last stage alone is normed."""

import pytest
import torch

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def dinov3(case: str, **options):
    return build_encoder(resolve_encoder("dinov3", config=SMALL_ENCODERS[case], options=EncoderOptions(**options)))


def test_vit_drops_cls_and_registers():
    encoder = dinov3("dinov3")
    assert (encoder.dropped_tokens, encoder.patch_size, encoder.hidden_size) == (3, 8, 32)
    assert encoder(torch.zeros(1, 3, 32, 48)).shape == (1, 4 * 6, 32)


def test_convnext_has_the_width_and_the_stride_of_its_last_stage():
    encoder = dinov3("dinov3#convnext")
    assert (encoder.dropped_tokens, encoder.patch_size, encoder.hidden_size) == (1, 32, 24)
    assert encoder(torch.zeros(1, 3, 64, 96)).shape == (1, 2 * 3, 24)


@pytest.mark.parametrize("options", [{"layer": -2}, {"final_norm": False}], ids=str)
def test_convnext_has_no_inner_layer_and_no_output_before_its_norm(options):
    with pytest.raises(UserError, match="DINOv3 ConvNeXt returns its normed last stage only"):
        dinov3("dinov3#convnext", **options)
    dinov3("dinov3", **options)

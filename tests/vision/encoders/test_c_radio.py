"""C-RADIO: raw colors, and the size that its model takes."""

import pytest
import torch

from qwenvl.vision.encoders.c_radio import CRadioEncoder
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_colors_may_stay_as_they_are():
    raw = resolve_encoder("c_radio", config=SMALL_ENCODERS["c_radio"]).preprocessing
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(("largest", "side"), [(2048, 512), (64, 64)])
def test_input_is_512_pixels_or_the_largest_that_the_model_takes(largest, side):
    published = CRadioEncoder.default_preprocessing({"max_img_size": largest})
    assert (published.height, published.width, published.resize) == (side, side, "squash")


def test_summary_tokens_and_registers_come_before_the_patches():
    config = {**SMALL_ENCODERS["c_radio"], "num_cls_tokens": 2, "num_registers": 3}
    encoder = build_encoder(resolve_encoder("c_radio", config=config))
    pixels = torch.zeros(1, 3, 32, 64)
    whole = encoder.model(pixel_values=pixels).last_hidden_state
    assert whole.shape[1] - encoder(pixels).shape[1] == encoder.dropped_tokens == 5

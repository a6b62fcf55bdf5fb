"""RAD-DINO and its sibling in MAIRA-2: a DINOv2 with its own input."""

from qwenvl.vision.encoders.dinov2 import Dinov2Encoder
from qwenvl.vision.encoders.rad_dino import MEAN, STD, RadDinoEncoder, RadDinoMaira2Encoder


def test_input_is_a_crop_of_gray_x_rays_at_the_size_of_the_positions():
    published = RadDinoEncoder.default_preprocessing({})
    assert (published.height, published.width, published.resize, published.resize_edge) == (518, 518, "crop", None)
    assert (published.mean, published.std) == (MEAN, STD)
    assert RadDinoEncoder.default_preprocessing({"image_size": 28}).height == 28


def test_weights_of_dinov2_and_of_the_sibling_are_of_the_same_models():
    assert RadDinoEncoder.models == RadDinoMaira2Encoder.models == Dinov2Encoder.models
    assert RadDinoMaira2Encoder.default_preprocessing({}) == RadDinoEncoder.default_preprocessing({})


def test_cards_name_other_weights_of_the_same_size_with_their_license():
    own, sibling = RadDinoEncoder.card, RadDinoMaira2Encoder.card
    assert (own.hidden_size, own.tokens) == (sibling.hidden_size, sibling.tokens) == (768, 37 * 37)
    assert own.default_path != sibling.default_path and sibling.license.startswith("MSRLA")

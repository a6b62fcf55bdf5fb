"""DINOv2: the published input, and CLS and register tokens."""

from qwenvl.vision import EncoderOptions
from qwenvl.vision.encoders.dinov2 import Dinov2Encoder
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_dinov2_takes_its_published_256_tokens_and_not_all_its_positions():
    config = {**SMALL_ENCODERS["dinov2"], "image_size": 518, "patch_size": 14}
    published = resolve_encoder("dinov2", config=config).preprocessing
    assert (published.height, published.width, published.resize_edge) == (224, 224, 256)
    assert resolve_encoder("rad_dino", config=config).preprocessing.height == 518


def test_prefix_is_cls_and_the_registers():
    registers = {**SMALL_ENCODERS["dinov2#registers"], "num_register_tokens": 3}
    for config, prefix in ((SMALL_ENCODERS["dinov2"], 1), (registers, 4)):
        kept = resolve_encoder("dinov2", config=config, options=EncoderOptions(keep_prefix_tokens=True))
        assert build_encoder(kept).prefix_tokens == prefix
        assert build_encoder(resolve_encoder("dinov2", config=config)).dropped_tokens == prefix


def test_crop_is_scaled_down_with_positions_for_less_than_224_pixels():
    published = Dinov2Encoder.default_preprocessing({"image_size": 112})
    assert (published.height, published.width, published.resize, published.resize_edge) == (112, 112, "crop", 128)

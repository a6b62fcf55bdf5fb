"""DINOv2: the published input, and CLS and register tokens."""

from qwenvl.vision.registry import resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_dinov2_takes_its_published_256_tokens_and_not_all_its_positions():
    config = {**SMALL_ENCODERS["dinov2"], "image_size": 518, "patch_size": 14}
    published = resolve_encoder("dinov2", config=config).preprocessing
    assert (published.height, published.width, published.resize_edge) == (224, 224, 256)
    assert resolve_encoder("rad_dino", config=config).preprocessing.height == 518

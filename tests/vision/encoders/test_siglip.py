"""SigLIP: sizes that are no multiple of the patch, and MedSigLIP's own input."""

import pytest

from qwenvl.errors import UserError
from qwenvl.vision.encoders.siglip import MedSiglipEncoder, SiglipEncoder
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_size_that_the_encoder_was_published_with_may_be_uneven():
    encoder = build_encoder(resolve_encoder("siglip", config=SMALL_ENCODERS["siglip#uneven"]))
    assert encoder.token_grid(31, 31) == (4, 4)
    with pytest.raises(UserError, match="not a multiple"):
        encoder.token_grid(30, 30)


def test_model_has_no_prefix_tokens_and_no_pooling_head():
    encoder = build_encoder(resolve_encoder("siglip", config=SMALL_ENCODERS["siglip"]))
    assert encoder.dropped_tokens == 0 and not hasattr(encoder.model, "head")


def test_medsiglip_is_a_larger_siglip_with_a_bilinear_resize():
    siglip, medical = SiglipEncoder.default_preprocessing({}), MedSiglipEncoder.default_preprocessing({})
    assert (siglip.height, siglip.interpolation, siglip.resize) == (224, "bicubic", "squash")
    assert (medical.height, medical.interpolation, medical.resize) == (448, "bilinear", "squash")
    assert MedSiglipEncoder.models == SiglipEncoder.models

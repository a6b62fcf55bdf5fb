"""SigLIP: sizes that are no multiple of the patch, and MedSigLIP's own input."""

import pytest

from qwenvl.errors import UserError
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_size_that_the_encoder_was_published_with_may_be_uneven():
    encoder = build_encoder(resolve_encoder("siglip", config=SMALL_ENCODERS["siglip#uneven"]))
    assert encoder.token_grid(31, 31) == (4, 4)
    with pytest.raises(UserError, match="not a multiple"):
        encoder.token_grid(30, 30)

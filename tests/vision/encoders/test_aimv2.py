"""AIMv2: one input size, unless the checkpoint is native."""

import pytest

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


@pytest.mark.parametrize(("case", "takes_any"), [("aimv2", False), ("aimv2#native", True)])
def test_only_a_native_checkpoint_takes_any_size(case, takes_any):
    larger = EncoderOptions(input_size=(64, 48))
    assert build_encoder(resolve_encoder("aimv2", config=SMALL_ENCODERS[case])).any_size == takes_any
    if takes_any:
        assert resolve_encoder("aimv2", config=SMALL_ENCODERS[case], options=larger).preprocessing.height == 64
    else:
        with pytest.raises(UserError, match="Aimv2Encoder takes images of 32x32 pixels only, got 64x48"):
            resolve_encoder("aimv2", config=SMALL_ENCODERS[case], options=larger)


def test_model_has_no_prefix_tokens_and_no_pooling_head():
    encoder = build_encoder(resolve_encoder("aimv2", config=SMALL_ENCODERS["aimv2"]))
    assert encoder.dropped_tokens == 0 and not hasattr(encoder.model, "head")

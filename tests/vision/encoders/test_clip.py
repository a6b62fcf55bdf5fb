"""CLIP: the last hidden state is not normed, and positions are interpolated."""

import torch

from qwenvl.vision import EncoderOptions
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def clip(**options):
    torch.manual_seed(0)
    spec = resolve_encoder("clip", config=SMALL_ENCODERS["clip"], options=EncoderOptions(**options))
    return build_encoder(spec).eval()


@torch.no_grad()
def test_final_norm_is_applied_only_if_it_is_asked_for():
    published, normed = clip(), clip(final_norm=True)
    expected = published.model(pixel_values=PIXELS).last_hidden_state[:, 1:]
    assert torch.equal(published(PIXELS), expected)
    assert torch.allclose(normed(PIXELS), normed.model.post_layernorm(expected), atol=1e-6)


@torch.no_grad()
def test_layer_before_the_last_is_that_of_the_model():
    states = clip().model(pixel_values=PIXELS, output_hidden_states=True).hidden_states
    assert torch.allclose(clip(layer=-2)(PIXELS), states[-2][:, 1:], atol=1e-6)


@torch.no_grad()
def test_interpolation_of_positions_changes_nothing_at_their_own_size():
    encoder = clip()
    assert torch.equal(
        encoder.model(**encoder.model_inputs(PIXELS)).last_hidden_state,
        encoder.model(pixel_values=PIXELS).last_hidden_state,
    )
    assert encoder(torch.zeros(1, 3, 48, 16)).shape == (1, 6 * 2, 32)

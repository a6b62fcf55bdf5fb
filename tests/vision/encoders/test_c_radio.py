"""C-RADIO: raw colors, and the size that its model takes."""

from qwenvl.vision.registry import resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS


def test_colors_may_stay_as_they_are():
    raw = resolve_encoder("c_radio", config=SMALL_ENCODERS["c_radio"]).preprocessing
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1.0,) * 3)

"""Encoders of the Transformers library: config.json with values that no model can have."""

import json
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.vision.registry import resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS

MODEL_TYPES = {"dinov2": "dinov2", "dinov3": "dinov3_vit", "siglip": "siglip_vision_model", "hf:org/vit": "vit"}


def config_folder(folder: Path, name: str, **changes: object) -> str:
    """Write the config.json of a small encoder with `changes` to it."""
    config = SMALL_ENCODERS["hf:vit" if name.startswith("hf:") else name]
    text = json.dumps({**config, "model_type": MODEL_TYPES[name], **changes})
    (folder / "config.json").write_text(text)
    return str(folder)


@pytest.mark.parametrize("name", MODEL_TYPES)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads in config.json is 0; expected positive integers"),
        ({"hidden_size": -32}, "hidden_size in config.json is -32; expected positive integers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0; expected positive integers"),
        ({"patch_size": 0}, "patch_size in config.json is 0; expected positive integers"),
        ({"image_size": []}, r"image_size in config.json is \[\]; expected positive integers"),
        ({"image_size": [32, -32]}, r"image_size in config.json is \[32, -32\]; expected positive integers"),
        ({"num_attention_heads": 3}, "(not a multiple of|not divisible by).* 3"),
        ({"hidden_size": "wide"}, "config.json is not valid: .*'hidden_size' expected int, got str .value: 'wide'"),
    ],
    ids=str,
)
def test_sizes_that_no_model_can_have_are_one_line(tmp_path, name, changes, reason):
    with pytest.raises(UserError, match=reason) as caught:
        resolve_encoder(name, path=config_folder(tmp_path, name, **changes))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_other_values_that_the_library_cannot_build_a_model_of_are_one_line(tmp_path):
    folder = config_folder(tmp_path, "dinov2", mlp_ratio=-2)
    with pytest.raises(UserError, match=f"^{folder}: Dinov2Encoder cannot be built .* negative .*correct the values"):
        resolve_encoder("dinov2", path=folder)


def test_width_need_not_be_a_multiple_of_the_heads_if_the_width_of_a_head_is_given(tmp_path):
    folder = config_folder(tmp_path, "dinov2", num_attention_heads=3, head_dim=16)
    assert resolve_encoder("dinov2", path=folder).config["hidden_size"] == 32

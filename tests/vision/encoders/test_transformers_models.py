"""Encoders of the Transformers library: weights of each family, models that are refused, invalid configurations."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2Config,
    Aimv2Model,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import features_of, small_model
from tests.vision.small_encoders import SMALL_ENCODERS, name_of

TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SHORT_TEXT = {**TEXT, "vocab_size": 16, "max_position_embeddings": 8}
SINGLE = ["rad_dino", "dinov2#registers", "dinov3", "dinov3#convnext", "c_radio", "aimv2", "siglip2#naflex"]
WHOLE = {
    "clip": (CLIPModel, CLIPConfig),
    "siglip": (SiglipModel, SiglipConfig),
    "medsiglip": (SiglipModel, SiglipConfig),
    "siglip2": (SiglipModel, SiglipConfig),
    "siglip2#naflex": (Siglip2Model, Siglip2Config),
    "aimv2": (Aimv2Model, Aimv2Config),
}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_VIT = {**TINY, "image_size": 32, "patch_size": 8}
NO_VIT = {
    "bert": (BertModel, BertConfig(**TINY, vocab_size=8), "has no attribute 'patch_size'"),
    "resnet": (ResNetModel, ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4), "'patch_size'"),
    "convnext": (ConvNextModel, ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4), r"it returns \(1, 8, 7, 7\)"),
    "videomae": (VideoMAEModel, VideoMAEConfig(**TINY_VIT), "its tokens cannot be counted"),
    "vit_mae": (ViTMAEModel, ViTMAEConfig(**TINY_VIT), "5 tokens for 16 patches"),
    "vit_mae that masks none": (ViTMAEModel, ViTMAEConfig(**TINY_VIT, mask_ratio=0.0), "shuffles its patches"),
    "yolos": (YolosModel, YolosConfig(**{**TINY_VIT, "image_size": [32, 32]}), "other tokens after them"),
    "swin": (
        SwinModel,
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2),
        "16 tokens for 64 patches",
    ),
}
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


def test_hf_form_takes_the_family_of_the_configuration():
    config = {**SMALL_ENCODERS["clip"], "model_type": "clip_vision_model"}
    encoder = build_encoder(resolve_encoder("hf:someone/clip", config=config))
    assert type(encoder).__name__ == "ClipEncoder"


@pytest.mark.parametrize("case", SINGLE)
def test_saved_vision_model_loads_to_equal_features(case, tmp_path):
    model = small_model(case)
    model.save_pretrained(tmp_path)
    encoder = build_encoder(resolve_encoder(name_of(case), path=str(tmp_path)))
    loaded = encoder.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    features_of(encoder)


@pytest.mark.parametrize("case", WHOLE)
def test_vision_part_of_a_whole_model_loads_to_equal_features(case, tmp_path):
    model_class, config_class = WHOLE[case]
    vision = {key: value for key, value in SMALL_ENCODERS[case].items() if key != "model_type"}
    torch.manual_seed(1)
    whole = model_class(config_class(vision_config=vision, text_config=SHORT_TEXT)).eval()
    whole.save_pretrained(tmp_path)
    encoder = build_encoder(resolve_encoder(name_of(case), path=str(tmp_path))).eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = whole.vision_model(**encoder.model_inputs(pixels)).last_hidden_state
    assert torch.allclose(encoder(pixels), expected[:, encoder.dropped_tokens :], atol=1e-6)
    assert not hasattr(encoder.model, "head")


def test_hf_form_loads_a_family_without_a_file_here(tmp_path):
    config = {key: value for key, value in SMALL_ENCODERS["hf:vit"].items() if key != "model_type"}
    torch.manual_seed(1)
    source = ViTModel(ViTConfig(**config)).eval()
    source.save_pretrained(tmp_path)
    encoder = build_encoder(resolve_encoder("hf:someone/vit", path=str(tmp_path))).eval()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.allclose(encoder(pixels), source(pixels).last_hidden_state[:, 1:], atol=1e-6)


def test_missing_weights_are_named(tmp_path):
    small_model("rad_dino").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights of Dinov2Model are missing: layernorm.weight"):
        build_encoder(resolve_encoder("rad_dino", path=str(tmp_path)))


def test_another_familys_folder_is_refused(tmp_path):
    small_model("clip").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a clip_vision_model model, RadDinoEncoder takes dinov2"):
        resolve_encoder("rad_dino", path=str(tmp_path))


@pytest.mark.parametrize("case", NO_VIT)
def test_model_without_a_token_for_each_patch_is_refused(case, tmp_path):
    model_class, config, reason = NO_VIT[case]
    model_class(config).save_pretrained(tmp_path)
    for options in (EncoderOptions(), EncoderOptions(keep_prefix_tokens=True)):
        with pytest.raises(UserError, match=f"{tmp_path} holds a {case.split()[0]} model: .*{reason}.*timm:MODEL_NAME"):
            resolve_encoder("hf:someone/model", path=str(tmp_path), options=options)


def test_qwen3_vl_is_no_encoder(standin):
    with pytest.raises(UserError, match="holds a qwen3_vl.* model: its tokens cannot be counted"):
        resolve_encoder("hf:someone/model", path=str(standin))

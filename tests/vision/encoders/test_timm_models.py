"""Models of timm: their published input, their size, their weights, and settings that are refused."""

import pytest
import torch
from safetensors.torch import save_file
from timm.data import create_transform

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions
from qwenvl.vision.encoder import check_forward
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import SIZE, assert_equal_input, features_of, write_json
from tests.vision.small_encoders import SMALL_ENCODERS, random_image


def test_timm_config_beside_the_weights_is_followed(tmp_path):
    settings = {
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "squash",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    write_json(tmp_path, {"pretrained_cfg": {**settings, "input_size": [3, 64, 64]}}, "config.json")
    (tmp_path / "model.safetensors").touch()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        wanted = resolve_encoder("timm:resnet18", path=str(path)).preprocessing
        transform = create_transform(64, is_training=False, **settings)
        assert_equal_input(wanted, transform(random_image(*SIZE))[None])


def test_timm_border_is_padding_with_the_mean_color(tmp_path):
    border = {"pretrained_cfg": {"crop_mode": "border", "crop_pct": 1.0, "input_size": [3, 64, 64]}}
    wanted = resolve_encoder("timm:resnet18", path=write_json(tmp_path, border, "config.json")).preprocessing
    assert (wanted.resize, wanted.height) == ("pad", 64)
    border["pretrained_cfg"]["crop_pct"] = 0.9
    with pytest.raises(UserError, match="no resize policy does"):
        resolve_encoder("timm:resnet18", path=write_json(tmp_path, border, "config.json"))


def test_model_of_fixed_size_is_built_for_the_size_in_its_timm_config(tmp_path):
    saved = {"pretrained_cfg": {"input_size": [3, 384, 384]}}
    spec = resolve_encoder("timm:vit_tiny_patch16_224", path=write_json(tmp_path, saved, "config.json"))
    assert (spec.preprocessing.height, spec.preprocessing.width) == (384, 384)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("[]", "config.json: holds a list, expected a JSON object"),
        ({"pretrained_cfg": {"mean": [0.5]}}, r"mean in config.json is \[0.5\]; expected three numbers"),
        ({"pretrained_cfg": {"interpolation": "hamming"}}, "interpolation 'hamming' is not supported"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct in config.json is 0; expected a number above 0"),
        (
            {"pretrained_cfg": {"input_size": [3, -64, 64]}},
            "input size -64x64 of a Preprocessing: expected two positive",
        ),
        ({"pretrained_cfg": 5}, "pretrained_cfg in config.json is 5; expected a JSON object"),
        ({"model_args": [1]}, r"model_args in config.json is \[1\]; expected a JSON object"),
        ({"model_args": {"layers": 0}}, "timm:resnet18 cannot be built with .*layers"),
    ],
)
def test_timm_config_that_cannot_be_followed_is_named(values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        resolve_encoder("timm:resnet18", path=write_json(tmp_path, values, "config.json"))


@pytest.mark.parametrize("case", ["timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:resnet18"])
def test_timm_model_is_made_for_the_size_asked_for(case):
    spec = resolve_encoder(case, config=SMALL_ENCODERS[case], options=EncoderOptions(input_size=(64, 96)))
    encoder = build_encoder(spec)
    assert check_forward(encoder, 64, 96).shape[1] == (64 // encoder.patch_size) * (96 // encoder.patch_size)


def test_unknown_timm_model_lists_near_ones():
    with pytest.raises(UserError, match="has no model 'resnet19'; closest: resnet18, "):
        resolve_encoder("timm:resnet19")
    with pytest.raises(UserError, match="has no model 'ViT_bas_patch16_224'; closest: vit_base_patch16_224, "):
        resolve_encoder("timm:ViT_bas_patch16_224")


@pytest.mark.parametrize("case", ["timm:vit_tiny_patch16_224", "timm:resnet18", "timm:convnext_atto"])
def test_timm_weights_load_strictly_without_their_classifier(case, tmp_path, monkeypatch):
    config = SMALL_ENCODERS[case]
    torch.manual_seed(1)
    source = build_encoder(resolve_encoder(case, config=config))
    head = source.model.pretrained_cfg["classifier"]
    state = {**source.model.state_dict(), f"{head}.weight": torch.zeros(5, 3), f"{head}.bias": torch.zeros(5)}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = build_encoder(resolve_encoder(case, config=config, path=str(path)))
        assert torch.equal(features_of(loaded), features_of(source))
        assert "state_dict" not in loaded.model.pretrained_cfg
    state.pop(next(iter(state)))
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="cannot be built with .* Missing key"):
        build_encoder(resolve_encoder(case, config=config, path=str(tmp_path)))


def test_timm_folder_without_weights_and_missing_timm_are_named(tmp_path, monkeypatch):
    case = "timm:resnet18"
    with pytest.raises(UserError, match="it has no weights; expected one of model.safetensors"):
        build_encoder(resolve_encoder(case, config=SMALL_ENCODERS[case], path=str(tmp_path)))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"the package timm, which is not installed: `pip install -e \".\[timm\]\"`"):
        resolve_encoder(case, config=SMALL_ENCODERS[case])

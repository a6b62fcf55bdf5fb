"""Real weights: each family loads what its own library saved, and a user is told what is missing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2Config,
    Aimv2Model,
    AutoConfig,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from qwenvl.errors import UserError
from qwenvl.vision import EncoderCard, plan_vision_config, swap_vision_tower
from qwenvl.vision.encoder import check_forward
from qwenvl.vision.encoders.rad_dino import RadDinoEncoder
from qwenvl.vision.encoders.timm_models import TimmEncoder
from qwenvl.vision.hub import missing_weights
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, TowerOptions, ask, name_of, picture, swap

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


def small_model(case: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return build_encoder(resolve_encoder(name_of(case), config=SMALL_ENCODERS[case])).model


def features_of(encoder) -> torch.Tensor:
    return check_forward(encoder.eval(), encoder.preprocessing.height, encoder.preprocessing.width)


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


def test_published_preprocessing_is_read_beside_the_weights(tmp_path):
    small_model("rad_dino").save_pretrained(tmp_path)
    spec = resolve_encoder("rad_dino", path=str(tmp_path))
    assert (spec.preprocessing.height, spec.preprocessing.mean) == (28, (0.5307,) * 3)
    BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 28, "width": 28}, image_mean=[0.1] * 3, resample=2
    ).save_pretrained(tmp_path)
    published = resolve_encoder("rad_dino", path=str(tmp_path)).preprocessing
    assert (published.resize, published.resize_edge, published.interpolation) == ("crop", 40, "bilinear")
    assert published.mean == (0.1,) * 3


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
    with pytest.raises(UserError, match="1 weights of Dinov2Model are missing there: layernorm.weight"):
        build_encoder(resolve_encoder("rad_dino", path=str(tmp_path)))


def test_another_familys_folder_is_refused(tmp_path):
    small_model("clip").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a clip_vision_model model, RadDinoEncoder takes dinov2"):
        resolve_encoder("rad_dino", path=str(tmp_path))


@pytest.mark.parametrize("path", ["/no/such/folder", "no_such_folder", "./a/b/c"])
def test_missing_folder_says_what_to_give(path):
    with pytest.raises(UserError, match="no such folder or file; give --custom_vision_pretrained_path a folder"):
        raise missing_weights(path, OSError("not found"))


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as an encoder"):
        resolve_encoder("rad_dino", path=str(tmp_path))


def test_gated_weights_say_where_to_accept_and_where_to_put_them():
    error = missing_weights("google/medsiglip-448", OSError("403: you are trying to access a gated repo."))
    assert "accept its terms at https://huggingface.co/google/medsiglip-448" in str(error)
    assert "hf auth login" in str(error) and "--custom_vision_pretrained_path FOLDER" in str(error)


def test_weights_that_cannot_be_downloaded_say_how_to_get_them():
    error = missing_weights("microsoft/rad-dino", OSError("We couldn't connect to the hub\nmore"))
    assert "`hf download microsoft/rad-dino --local-dir FOLDER`" in str(error) and "\n" not in str(error)


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


def test_biomedclip_loads_the_vision_part_of_an_open_clip_file(tmp_path):
    config = SMALL_ENCODERS["biomedclip"]
    torch.manual_seed(1)
    source = build_encoder(resolve_encoder("biomedclip", config=config))
    state = {f"visual.trunk.{name}": value for name, value in source.model.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(4, 32), "text.proj.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    loaded = build_encoder(resolve_encoder("biomedclip", config=config, path=str(tmp_path)))
    assert torch.equal(features_of(loaded), features_of(source))


def test_timm_folder_without_weights_and_missing_timm_are_named(tmp_path, monkeypatch):
    case = "timm:resnet18"
    with pytest.raises(UserError, match="no weights there; expected one of model.safetensors"):
        build_encoder(resolve_encoder(case, config=SMALL_ENCODERS[case], path=str(tmp_path)))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm, which is not installed: `pip install -e .\[timm\]`"):
        resolve_encoder(case, config=SMALL_ENCODERS[case])


def test_registered_default_paths_are_hub_names():
    assert isinstance(RadDinoEncoder.card, EncoderCard) and RadDinoEncoder.card.tokens == 1369
    assert TimmEncoder.card is None


@pytest.fixture
def rad_dino_folder(tmp_path) -> Path:
    small_model("rad_dino").save_pretrained(tmp_path / "rad-dino")
    return tmp_path / "rad-dino"


def test_hash_of_the_weights_is_noted_and_checked_when_the_tower_is_made_again(standin, rad_dino_folder, processor):
    model, _ = swap(standin, TowerOptions("rad_dino", path=str(rad_dino_folder)))
    noted = model.config.vision_config
    assert noted.encoder_weights == str(rad_dino_folder) and len(noted.encoder_sha256) == 64
    assert swap_vision_tower(model, noted).config.vision_config.encoder_sha256 == noted.encoder_sha256
    weights = load_file(rad_dino_folder / "model.safetensors")
    weights["layernorm.weight"] += 1
    save_file(weights, rad_dino_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not the weights that the tower was trained with .*expected"):
        swap_vision_tower(model, noted)


def test_tower_with_loaded_weights_gives_the_encoders_own_features(standin, rad_dino_folder):
    model, processor = swap(standin, TowerOptions("rad_dino", path=str(rad_dino_folder)))
    source = build_encoder(resolve_encoder("rad_dino", path=str(rad_dino_folder))).eval()
    inputs = ask(processor, [picture(40, 64)])
    found = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state
    assert torch.equal(found, source(inputs["pixel_values"])[0])


def test_plan_reads_no_weights(standin, rad_dino_folder, processor):
    (rad_dino_folder / "model.safetensors").unlink()
    config = json.loads((standin / "config.json").read_text())
    planned = plan_vision_config(
        AutoConfig.from_pretrained(standin), TowerOptions("rad_dino", path=str(rad_dino_folder)), processor
    )
    assert planned.out_hidden_size == config["text_config"]["hidden_size"] and planned.token_grid == [4, 4]


def test_naflex_patches_are_cut_as_its_own_image_processor_cuts_them():
    encoder = build_encoder(resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"]))
    pixels = torch.randn(2, 3, 16, 40)
    made = encoder.model_inputs(pixels)
    assert torch.equal(made["pixel_values"], torch.stack([convert_image_to_patches(image, 8) for image in pixels]))
    assert made["spatial_shapes"].tolist() == [[2, 5], [2, 5]]

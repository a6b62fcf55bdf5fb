"""Real weights: each family loads what its own library saved, and a user is told what is missing."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2Config,
    Aimv2Model,
    AutoConfig,
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    PreTrainedModel,
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
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from qwenvl.errors import UserError
from qwenvl.vision import EncoderCard, EncoderOptions, hub, plan_vision_config, swap_vision_tower
from qwenvl.vision.encoder import check_forward
from qwenvl.vision.encoders.rad_dino import RadDinoEncoder
from qwenvl.vision.encoders.timm_models import TimmEncoder
from qwenvl.vision.hub import find_file, missing_weights
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, TowerOptions, ask, name_of, random_image, swap

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


def from_hub(kind: type[Exception], said: str = "private or gated repo") -> Exception:
    """Return what Transformers raises where the hub's library raised `kind`."""
    error = OSError(said)
    error.__cause__ = kind(said, response=Mock(headers={})) if issubclass(kind, HfHubHTTPError) else kind(said)
    return error


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
    with pytest.raises(UserError, match="1 weights of Dinov2Model are missing: layernorm.weight"):
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
    error = missing_weights("google/medsiglip-448", from_hub(GatedRepoError))
    assert "is gated: accept its terms at https://huggingface.co/google/medsiglip-448" in str(error)
    assert "hf auth login" in str(error) and "--custom_vision_pretrained_path FOLDER" in str(error)


def test_repository_that_is_not_there_is_not_called_gated():
    error = str(missing_weights("someone/absent", from_hub(RepositoryNotFoundError)))
    assert "nor a repository on the hub" in error and "is gated" not in error


def test_weights_that_cannot_be_downloaded_say_how_to_get_them():
    error = missing_weights("microsoft/rad-dino", OSError("We couldn't connect to the hub\nmore"), RadDinoEncoder.card)
    assert "`hf download microsoft/rad-dino --local-dir FOLDER`" in str(error) and "\n" not in str(error)
    assert "gated" not in str(error)


def test_gate_of_the_encoder_is_told_where_the_hub_cannot_be_asked(monkeypatch):
    monkeypatch.setattr(AutoConfig, "from_pretrained", Mock(side_effect=OSError("no connection")))
    with pytest.raises(UserError, match="no connection.; it is gated: accept its terms at https://.*google/medsiglip"):
        resolve_encoder("medsiglip")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({"a.safetensors": RemoteEntryNotFoundError}, "b.bin"),
        ({"a.safetensors": LocalEntryNotFoundError}, "b.bin"),
        ({"a.safetensors": RemoteEntryNotFoundError, "b.bin": RemoteEntryNotFoundError}, None),
        ({"a.safetensors": GatedRepoError}, "is gated"),
        ({"a.safetensors": RepositoryNotFoundError}, "nor a repository on the hub"),
        ({"a.safetensors": LocalEntryNotFoundError, "b.bin": RemoteEntryNotFoundError}, "not in the cache"),
    ],
)
def test_file_of_a_repository_is_looked_for_under_each_name(failures, expected, monkeypatch):
    def download(repository: str, name: str) -> str:
        if name in failures:
            raise from_hub(failures[name]).__cause__
        return f"/cache/{name}"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    if expected in (None, "b.bin"):
        found = find_file("someone/model", ("a.safetensors", "b.bin"))
        assert found == (None if expected is None else Path("/cache") / expected)
    else:
        with pytest.raises(UserError, match=expected):
            find_file("someone/model", ("a.safetensors", "b.bin"))


def test_file_where_the_folder_is_wanted_names_the_folder(rad_dino_folder):
    with pytest.raises(UserError, match=f"is a file; .*give --custom_vision_pretrained_path {rad_dino_folder}$"):
        resolve_encoder("rad_dino", path=str(rad_dino_folder / "model.safetensors"))


def test_weights_that_are_cut_off_are_named(rad_dino_folder, tmp_path):
    weights = rad_dino_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"^{rad_dino_folder}: cannot be loaded as an encoder"):
        build_encoder(resolve_encoder("rad_dino", path=str(rad_dino_folder)))
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    case = "timm:resnet18"
    with pytest.raises(UserError, match="model.safetensors: cannot be loaded as an encoder"):
        build_encoder(resolve_encoder(case, config=SMALL_ENCODERS[case], path=str(tmp_path)))


def test_weights_of_another_shape_than_the_configuration_are_named(rad_dino_folder):
    config = json.loads((rad_dino_folder / "config.json").read_text())
    (rad_dino_folder / "config.json").write_text(json.dumps({**config, "mlp_ratio": 3}))
    with pytest.raises(UserError, match=r"rad-dino: 9 weights have another shape .*fc1.bias \(64,\) for \(96,\)"):
        build_encoder(resolve_encoder("rad_dino", path=str(rad_dino_folder)))


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
    with pytest.raises(UserError, match="it has no weights; expected one of model.safetensors"):
        build_encoder(resolve_encoder(case, config=SMALL_ENCODERS[case], path=str(tmp_path)))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"the package timm, which is not installed: `pip install -e \".\[timm\]\"`"):
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
    inputs = ask(processor, [random_image(40, 64)])
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

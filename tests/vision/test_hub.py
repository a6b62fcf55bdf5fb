"""Weights in folders and on the hub: loading them, and the errors for those that are missing or gated."""

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
    AutoConfig,
    BitImageProcessor,
)

from qwenvl.errors import UserError
from qwenvl.vision import EncoderCard, hub, plan_vision_config, swap_vision_tower
from qwenvl.vision.encoders.rad_dino import RadDinoEncoder
from qwenvl.vision.encoders.timm_models import TimmEncoder
from qwenvl.vision.hub import find_file, missing_weights
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import small_model
from tests.vision.small_encoders import SMALL_ENCODERS, TowerOptions, ask, random_image, swap


def from_hub(kind: type[Exception], text: str = "private or gated repo") -> Exception:
    """Return what Transformers raises where the hub's library raised `kind`."""
    error = OSError(text)
    error.__cause__ = kind(text, response=Mock(headers={})) if issubclass(kind, HfHubHTTPError) else kind(text)
    return error


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


@pytest.mark.parametrize("path", ["/no/such/folder", "no_such_folder", "./a/b/c"])
def test_error_for_a_missing_folder_names_the_remedy(path):
    with pytest.raises(UserError, match="no such folder or file; give --custom_vision_pretrained_path a folder"):
        raise missing_weights(path, OSError("not found"))


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as an encoder"):
        resolve_encoder("rad_dino", path=str(tmp_path))


def test_error_for_gated_weights_names_the_terms_and_the_folder():
    error = missing_weights("google/medsiglip-448", from_hub(GatedRepoError))
    assert "is gated: accept its terms at https://huggingface.co/google/medsiglip-448" in str(error)
    assert "hf auth login" in str(error) and "--custom_vision_pretrained_path FOLDER" in str(error)


def test_repository_that_is_not_there_is_not_called_gated():
    error = str(missing_weights("someone/absent", from_hub(RepositoryNotFoundError)))
    assert "nor a repository on the hub" in error and "is gated" not in error


def test_error_for_a_failed_download_names_the_command():
    error = missing_weights("microsoft/rad-dino", OSError("We couldn't connect to the hub\nmore"), RadDinoEncoder.card)
    assert "`hf download microsoft/rad-dino --local-dir FOLDER`" in str(error) and "\n" not in str(error)
    assert "gated" not in str(error)


def test_gate_of_the_encoder_is_named_if_the_hub_is_not_reachable(monkeypatch):
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

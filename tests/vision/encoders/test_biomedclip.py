"""BiomedCLIP: the settings and weights of open_clip for a model of timm."""

import pytest
import torch
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
)

from qwenvl.errors import UserError
from qwenvl.vision.encoders.biomedclip import BiomedClipEncoder
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import features_of, write_json
from tests.vision.small_encoders import SMALL_ENCODERS


def test_open_clip_settings_beside_biomedclip_are_followed(tmp_path):
    published = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    folder = write_json(tmp_path, {"preprocess_cfg": published}, "open_clip_config.json")
    wanted = resolve_encoder("biomedclip", path=folder).preprocessing
    assert (wanted.resize, wanted.interpolation) == ("squash", "bilinear")
    assert (wanted.mean, wanted.std, wanted.height) == ((0.1,) * 3, (0.2,) * 3, 224)
    with pytest.raises(UserError, match="resize_mode 'longest' in open_clip_config.json"):
        write_json(tmp_path, {"preprocess_cfg": {"resize_mode": "longest"}}, "open_clip_config.json")
        resolve_encoder("biomedclip", path=folder)


def test_default_of_biomedclip_asks_no_hub():
    published = resolve_encoder("biomedclip").preprocessing
    assert (published.height, published.resize, published.mean) == (224, "crop", tuple(OPENAI_CLIP_MEAN))


def test_biomedclip_loads_the_vision_part_of_an_open_clip_file(tmp_path):
    config = SMALL_ENCODERS["biomedclip"]
    torch.manual_seed(1)
    source = build_encoder(resolve_encoder("biomedclip", config=config))
    state = {f"visual.trunk.{name}": value for name, value in source.model.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(4, 32), "text.proj.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    loaded = build_encoder(resolve_encoder("biomedclip", config=config, path=str(tmp_path)))
    assert torch.equal(features_of(loaded), features_of(source))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"preprocess_cfg": {"size": 0}}, "size in open_clip_config.json is 0; expected pixels"),
        ({"preprocess_cfg": {"size": [224]}}, r"size in open_clip_config.json is \[224\]"),
        ({"preprocess_cfg": []}, r"preprocess_cfg in open_clip_config.json is \[\]; expected a JSON object"),
        ({"model_cfg": {"vision_cfg": 3}}, "vision_cfg in open_clip_config.json is 3; expected a JSON object"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(tmp_path, settings, reason):
    with pytest.raises(UserError, match=f"^{tmp_path}: {reason}"):
        resolve_encoder("biomedclip", path=write_json(tmp_path, settings, "open_clip_config.json"))


def test_size_may_come_from_the_vision_model_of_open_clip(tmp_path):
    settings = {"model_cfg": {"vision_cfg": {"image_size": 336}}}
    folder = write_json(tmp_path, settings, "open_clip_config.json")
    assert BiomedClipEncoder.read_source(folder, None).config["pretrained_cfg"]["input_size"] == (3, 336, 336)

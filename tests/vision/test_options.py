import json
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import transformers

from qwenvl.model.arguments import CUSTOM_VISION_FLAGS, ModelArguments
from qwenvl.vision.cache.store import CONFIGURED
from qwenvl.vision.encoder import EncoderSpec
from qwenvl.vision.merger import MERGERS
from qwenvl.vision.options import ENCODER_RESIZE, OPTION_FLAGS, OPTIONS, EncoderOptions, MergerName, ResizePolicy
from qwenvl.vision.preprocessing import RESIZE_POLICIES, Preprocessing
from qwenvl.vision.tower import CustomVisionConfig

# The vision part of a config.json as the first release of the package wrote it.
SAVED_TOWER = """{
    "encoder": "dinov2", "encoder_config": {"image_size": 28}, "encoder_weights": "facebook/dinov2-base",
    "encoder_sha256": "5f0c", "encoder_half": "parameters", "layer": -2, "final_norm": true, "keep_prefix_tokens": true,
    "resize": "squash", "input_size": [28, 42], "preprocessing": {"height": 28, "width": 42, "resize": "squash"},
    "token_grid": [1, 25], "prefix_tokens": 1, "patch_size": 7, "input_mode": "qwen",
    "qwen_pixels": {"patch_size": 16}, "merger": "mlp2", "hidden_size": 32, "out_hidden_size": 64,
    "initializer_range": 0.02, "spatial_merge_size": 1, "temporal_patch_size": 1, "deepstack_visual_indexes": [],
    "model_type": "qwenvl_custom_vision"
}"""


@pytest.mark.parametrize("option", OPTIONS)
def test_flag_and_configuration_have_the_default_of_the_option(option: str) -> None:
    default = OPTIONS[option].default
    assert getattr(ModelArguments(), OPTIONS[option].metadata["flag"]) == default
    assert getattr(CustomVisionConfig(), option) == default


@pytest.mark.parametrize("option", OPTIONS)
def test_flag_has_the_type_and_the_help_of_the_option(option: str) -> None:
    declared = OPTIONS[option]
    flag = next(each for each in fields(ModelArguments) if each.name == declared.metadata["flag"])
    # A size is text on the command line: 518, or 518x1036. HfArgumentParser writes over the types of fields, not hints.
    assert get_type_hints(ModelArguments)[flag.name] == (str | None if option == "input_size" else declared.type)
    assert flag.metadata["help"] == declared.metadata["help"]


def test_every_flag_of_the_tower_is_an_option() -> None:
    flags = {each.name for each in fields(ModelArguments) if each.name.startswith("vision_")}
    assert flags | {"custom_vision_input"} == set(OPTION_FLAGS) | {"vision_merger_path"}


def test_configuration_holds_every_option_under_its_name() -> None:
    assert set(OPTIONS) < {each.name for each in fields(CustomVisionConfig)}


def test_configuration_of_an_old_checkpoint_loads_and_is_saved_with_the_same_keys() -> None:
    saved = json.loads(SAVED_TOWER)
    config = CustomVisionConfig.from_dict(saved)
    assert config.encoder_spec() == EncoderSpec(
        name="dinov2",
        config={"image_size": 28},
        preprocessing=Preprocessing(28, 42, "squash"),
        weights="facebook/dinov2-base",
        options=EncoderOptions(-2, True, True, "squash", (28, 42)),
    )
    assert config.to_diff_dict() == saved | {"transformers_version": transformers.__version__}


def test_every_option_must_be_repeated_by_a_continued_run() -> None:
    assert set(OPTION_FLAGS) < set(CUSTOM_VISION_FLAGS)


def test_options_survive_the_configuration() -> None:
    options = EncoderOptions(-2, True, True, "squash", (28, 42))
    saved = options.to_config()
    assert json.loads(json.dumps(saved)) == saved
    assert CustomVisionConfig(**saved).encoder_spec().options == options


def test_the_fingerprint_of_features_holds_what_it_always_held() -> None:
    own = {"layer", "final_norm", "keep_prefix_tokens", "input_mode", "qwen_pixels"}
    made = {"encoder", "encoder_config", "preprocessing", "token_grid", "prefix_tokens", "patch_size"}
    assert set(CONFIGURED) == own | made


def test_choices_of_the_flags_are_what_the_tower_knows() -> None:
    assert get_args(MergerName) == tuple(MERGERS)
    assert set(get_args(ResizePolicy)) == {ENCODER_RESIZE, *RESIZE_POLICIES}

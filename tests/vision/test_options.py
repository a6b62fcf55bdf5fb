import json
from typing import get_args

import pytest

from qwenvl.model.arguments import CUSTOM_VISION_FLAGS, ModelArguments
from qwenvl.vision.cache.store import CONFIGURED
from qwenvl.vision.merger import MERGERS
from qwenvl.vision.options import ENCODER_RESIZE, OPTION_FLAGS, OPTIONS, EncoderOptions, MergerName, ResizePolicy
from qwenvl.vision.preprocessing import RESIZE_POLICIES
from qwenvl.vision.tower import CustomVisionConfig


@pytest.mark.parametrize("option", OPTIONS)
def test_flag_and_configuration_have_the_default_of_the_option(option: str) -> None:
    default = OPTIONS[option].default
    assert getattr(ModelArguments(), OPTIONS[option].metadata["flag"]) == default
    assert getattr(CustomVisionConfig(), option) == default


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

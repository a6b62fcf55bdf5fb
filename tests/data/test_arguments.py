"""Tests of the data flags: their defaults, and the values that are rejected."""

import pytest

from qwenvl.data.arguments import OFFICIAL_PIXEL_LIMITS, DataArguments
from qwenvl.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bad_sample_policy": "ignore"}, "--bad_sample_policy 'ignore' is unknown; choose error or skip"),
        ({"thinking_turns": "first"}, "--thinking_turns 'first' is unknown; choose each or last"),
        ({"max_image_megapixels": 0}, "--max_image_megapixels 0: give 1 or more"),
        ({"max_bad_samples": -1}, "--max_bad_samples -1: give 0 or more"),
        ({"video_min_frames": 9}, "--video_min_frames 9 is above --video_max_frames 8"),
        ({"video_min_frames": 1}, "--video_min_frames 1: Qwen3-VL reads frames in pairs"),
        ({"video_fps": 0.0}, "--video_fps 0.0: give a number above 0"),
    ]
    + [({name: 0}, f"--{name} 0: give a number of pixels above 0") for name in OFFICIAL_PIXEL_LIMITS],
)
def test_a_value_that_no_run_can_use_is_refused_with_the_flag_and_the_remedy(flags: dict, message: str):
    with pytest.raises(UserError) as error:
        DataArguments(**flags)
    assert str(error.value).startswith(message)


def test_pixel_limits_are_unset_by_default_so_that_an_encoder_can_keep_its_own():
    arguments = DataArguments()
    assert {getattr(arguments, name) for name in OFFICIAL_PIXEL_LIMITS} == {None}


def test_megapixels_are_binary():
    assert DataArguments(max_image_megapixels=64).max_image_pixels == 8192 * 8192

"""From images to encoder inputs: equal to the published processors, for each resize policy."""

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor, convert_image_to_patches

from qwenvl.errors import UserError
from qwenvl.vision.encoders.published import from_image_processor
from qwenvl.vision.preprocessing import Geometry, Preprocessing, TokenRule
from tests.vision.small_encoders import random_image

RAD_DINO = {
    "size": {"shortest_edge": 42},
    "crop_size": {"height": 42, "width": 42},
    "resample": 3,
    "image_mean": [0.5307] * 3,
    "image_std": [0.2583] * 3,
}
PUBLISHED = {
    "rad_dino": BitImageProcessor(**RAD_DINO),
    "dinov2": BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}),
    "clip": CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
    "siglip": SiglipImageProcessor(size={"height": 42, "width": 42}),
    "c_radio": CLIPImageProcessor(
        do_normalize=False, do_center_crop=False, size={"height": 48, "width": 32}, crop_size={"height": 1, "width": 1}
    ),
}


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.array(random_image(height, width))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [(61, 97), (97, 61), (30, 200), (42, 42)])
def test_input_equals_that_of_the_published_image_processor(name, size):
    processor = PUBLISHED[name]
    expected = processor(random_image(*size), return_tensors="pt")["pixel_values"]
    geometry = Geometry(from_image_processor(processor, "here"), TokenRule(14))
    assert torch.allclose(geometry.prepare(pixels(*size)), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(61, 97), (20, 300), (16, 16)])
def test_naflex_input_and_grid_equal_those_of_the_published_image_processor(size):
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=24)
    made = processor(random_image(*size), return_tensors="pt")
    geometry = Geometry(from_image_processor(processor, "here"), TokenRule(8))
    grid = geometry.grid(*size)
    assert list(grid) == made["spatial_shapes"][0].tolist()
    patches = convert_image_to_patches(geometry.prepare(pixels(*size))[0], 8)
    assert torch.allclose(patches, made["pixel_values"][0, : len(patches)], atol=1e-5)


def test_pad_shows_the_whole_image_in_the_middle_of_the_mean_color():
    geometry = Geometry(Preprocessing(40, 40, "pad", mean=(0.2,) * 3), TokenRule(8))
    made = geometry.prepare(torch.full((1, 3, 20, 40), 255, dtype=torch.uint8))
    assert made.shape == (1, 3, 40, 40)
    assert torch.equal(made[..., :10, :], torch.zeros(1, 3, 10, 40))
    assert torch.equal(made[..., 30:, :], torch.zeros(1, 3, 10, 40))
    assert torch.allclose(made[..., 10:30, :], torch.tensor(1.6))


def test_crop_takes_the_middle_and_squash_keeps_both_ends():
    bars = torch.zeros(1, 3, 20, 80, dtype=torch.uint8)
    bars[..., :20], bars[..., 60:] = 255, 255
    crop = Geometry(Preprocessing(20, 20, "crop"), TokenRule(10)).prepare(bars)
    squash = Geometry(Preprocessing(20, 20, "squash", interpolation="bilinear"), TokenRule(10)).prepare(bars)
    assert crop.max() == -1
    assert squash[..., 0].min() > 0.9 and squash[..., -1].min() > 0.9


def test_native_keeps_the_aspect_within_the_limits_on_whole_patches():
    preprocessing = Preprocessing(resize="native", min_pixels=14 * 14, max_pixels=200 * 200)
    geometry = Geometry(preprocessing, TokenRule(14))
    assert geometry.input_size(280, 140) == (280, 140)
    height, width = geometry.input_size(1400, 700)
    assert height * width <= 200 * 200 and height % 14 == width % 14 == 0 and abs(height / width - 2) < 0.2
    assert geometry.input_size(3, 5) == (14, 28) or geometry.input_size(3, 5)[0] >= 14
    with pytest.raises(UserError, match="aspect"):
        geometry.input_size(4, 4000)


def test_float_pixels_are_clamped_where_a_filter_overshoots():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 255.0
    made = Geometry(Preprocessing(32, 32, "squash"), TokenRule(8)).prepare(edge)
    assert made.min() == -1 and made.max() == 1


def test_unknown_policy_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="'stretch'.*crop, pad, squash"):
        Preprocessing(resize="stretch")


def test_geometry_survives_json():
    geometry = Geometry(Preprocessing(28, 42, "pad", resize_edge=3), TokenRule(7, 2, (1, 9)))
    assert Geometry.from_dict(geometry.to_dict()) == geometry


@pytest.mark.parametrize("normalization", [{"mean": (0.5,)}, {"std": (0.25, 0.25)}])
def test_a_normalization_of_other_than_three_channels_is_refused(normalization: dict):
    with pytest.raises(UserError, match="expected three numbers, for red, green and blue"):
        Preprocessing(**normalization)


@pytest.mark.parametrize("size", [(0, 28), (28, -1), (28.0, 28)])
def test_input_size_must_be_positive_integers(size):
    with pytest.raises(UserError, match="of a Preprocessing: expected two positive integers"):
        Preprocessing(*size)

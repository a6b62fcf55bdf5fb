"""Sizes of images against the official qwen-vl-utils, which the official training code resizes by."""

import pytest
from qwen_vl_utils import fetch_image, smart_resize
from transformers import Qwen2VLImageProcessor

from qwenvl.data.media.images import image_size, load_image

LIMITS = (32 * 32 * 4, 32 * 32 * 256)


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (96, 160), (333, 47), (480, 640), (1023, 2049), (3000, 2500)])
def test_patches_of_an_image_are_those_of_the_official_size(size: tuple[int, int]):
    processor = Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": LIMITS[0], "longest_edge": LIMITS[1]}
    )
    height, width = smart_resize(*size, factor=32, min_pixels=LIMITS[0], max_pixels=LIMITS[1])
    assert processor.get_number_of_image_patches(*size, {}) == height * width // 16**2


@pytest.mark.parametrize("name", ["wide.png", "tall.png"])
def test_a_file_of_8_bits_is_read_as_the_official_reader_does(media, name: str):
    path = str(media / name)
    height, width = smart_resize(*image_size(path), factor=32, min_pixels=LIMITS[0], max_pixels=LIMITS[1])
    official = fetch_image({"image": path, "resized_height": height, "resized_width": width}, image_patch_size=16)
    assert load_image(path).resize((width, height)).tobytes() == official.tobytes()

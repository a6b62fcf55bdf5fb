"""Sizes of images against the official qwen-vl-utils, which the official training code resizes by."""

from pathlib import Path

import pytest
from qwen_vl_utils import fetch_image, smart_resize
from transformers import AutoProcessor

from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter
from qwenvl.data.media.images import image_size, load_image
from qwenvl.data.media.sizes import ImageSize
from qwenvl.data.pixel_limits import set_pixel_limits
from qwenvl.data.records import Record, Turn

LIMITS = (32 * 32 * 4, 32 * 32 * 256)


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (96, 160), (333, 47), (480, 640), (1023, 2049), (3000, 2500)])
def test_the_patches_counted_for_an_image_are_those_of_the_official_size(standin: Path, size: tuple[int, int]):
    processor = AutoProcessor.from_pretrained(standin)
    set_pixel_limits(processor, DataArguments(min_pixels=LIMITS[0], max_pixels=LIMITS[1]))
    record = Record("t.json", 0, (Turn("user", "<image>What?"), Turn("assistant", "It.")), images=("/a.png",))
    counts = TokenCounter(RecordEncoder(processor)).count([record], {"/a.png": ImageSize(*size)})
    height, width = smart_resize(*size, factor=32, min_pixels=LIMITS[0], max_pixels=LIMITS[1])
    assert counts.patches.tolist() == [height * width // 16**2]


@pytest.mark.parametrize("name", ["wide.png", "tall.png"])
def test_a_file_of_8_bits_is_read_as_the_official_reader_does(media, name: str):
    path = str(media / name)
    height, width = smart_resize(*image_size(path), factor=32, min_pixels=LIMITS[0], max_pixels=LIMITS[1])
    official = fetch_image({"image": path, "resized_height": height, "resized_width": width}, image_patch_size=16)
    assert load_image(path).resize((width, height)).tobytes() == official.tobytes()

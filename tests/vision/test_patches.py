"""Rows of patches: the official layout undone bit for bit, and headers that survive half precision."""

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

from qwenvl.vision.patches import PatchGrid, PatchLayout, patchify, read_header, split_rows, unpatchify, with_header
from tests.vision.small_encoders import random_image

OFFICIAL = PatchLayout(16, 2, 2)


@pytest.mark.parametrize("size", [(32, 32), (64, 160), (96, 32)])
def test_unpatchify_inverts_the_official_image_patchify_bit_for_bit(size):
    processor = Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 1024, "longest_edge": 10**6})
    made = processor(random_image(*size), return_tensors="pt")
    time, height, width = made["image_grid_thw"][0].tolist()
    frames = unpatchify(made["pixel_values"], PatchGrid(time, height, width, 1), OFFICIAL)
    plain = Qwen2VLImageProcessor(patch_size=16, do_resize=False)
    pixels = torch.from_numpy(np.array(random_image(*size))).permute(2, 0, 1)[None]
    expected = plain.rescale_and_normalize(pixels, True, 1 / 255, True, plain.image_mean, plain.image_std)
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("count", [2, 5, 6])
def test_unpatchify_inverts_the_official_video_patchify_and_drops_the_repeated_frame(count):
    processor = Qwen3VLVideoProcessor(do_sample_frames=False, do_resize=False, cap_pixels_per_frame=False)
    video = torch.randint(0, 256, (count, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = processor(videos=[video], return_tensors="pt")
    time, height, width = made["video_grid_thw"][0].tolist()
    frames = unpatchify(made["pixel_values_videos"], PatchGrid(time, height, width, count), OFFICIAL)
    expected = processor.rescale_and_normalize(video, True, 1 / 255, True, processor.image_mean, processor.image_std)
    assert torch.equal(frames, expected)


@pytest.mark.parametrize("layout", [OFFICIAL, PatchLayout(7), PatchLayout(4, 3, 2)])
def test_patchify_and_unpatchify_are_inverse(layout):
    side = layout.patch_size * layout.merge_size
    frames = torch.randn(2 * layout.temporal_patch_size, 3, 2 * side, 3 * side)
    rows, grid = patchify(frames, layout)
    assert torch.equal(unpatchify(rows, grid, layout), frames)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_headers_tell_images_apart_in_any_precision(dtype):
    grids = [PatchGrid(1, 1, 1, 1), PatchGrid(2, 3, 5, 3), PatchGrid(1, 257, 2, 1)]
    rows = [torch.randn(grid.rows, 12) for grid in grids]
    joined = torch.cat([with_header(part, grid) for part, grid in zip(rows, grids, strict=True)]).to(dtype)
    found = split_rows(joined)
    assert [grid for _, grid in found] == grids
    for (part, _), original in zip(found, rows, strict=True):
        assert torch.equal(part, original.to(dtype))


def test_rows_without_headers_are_not_taken_for_images():
    assert split_rows(torch.randn(16, 12)) is None
    assert read_header(torch.zeros(12)) is None
    cut = with_header(torch.randn(6, 12), PatchGrid(1, 2, 3, 1))[:-1]
    assert split_rows(cut) is None

"""Compute Qwen3-VL's rotary positions (M-RoPE): time, height and width of each token of one sample.

Shapes: L tokens of one sample.
"""

from typing import NamedTuple

import numpy as np
import torch


class MediaTokens(NamedTuple):
    """The ids of the placeholder tokens, and the number of patches along each side of a token."""

    image_id: int
    video_id: int
    merge_size: int


def mrope_position_ids(
    input_ids: torch.Tensor,
    tokens: MediaTokens,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the positions (3, L) of one sample's tokens, equal to those of `Qwen3VLModel.get_rope_index`.

    `input_ids` is (L,); the grids are (n, 3), in patches. Text advances by one in all three rows. The position of
    an image token is the start of the image plus its coordinates in the grid; the text after the image continues behind
    its longer side. A video is a sequence of such images, one for each temporal patch. Raises `ValueError` if
    grids and placeholders do not match.
    """
    ids = np.asarray(input_ids)
    steps = np.ones(len(ids), dtype=np.int64)
    offsets = np.zeros((3, len(ids)), dtype=np.int64)
    for token_id, grids in ((tokens.image_id, image_grid_thw), (tokens.video_id, _frames(video_grid_thw))):
        slots = np.flatnonzero(ids == token_id)
        grids = np.empty((0, 3), dtype=np.int64) if grids is None else np.asarray(grids)
        grids = grids // [1, tokens.merge_size, tokens.merge_size]
        sizes = grids.prod(axis=1)
        if sizes.sum() != len(slots):
            raise ValueError(
                f"{len(slots)} placeholder tokens with id {token_id}, but the media take {sizes.sum()}: the processor "
                "and its grids do not belong together"
            )
        within = np.arange(len(slots)) - np.repeat(sizes.cumsum() - sizes, sizes)
        height, width = np.repeat(grids[:, 1], sizes), np.repeat(grids[:, 2], sizes)
        offsets[:, slots] = within // (height * width), within // width % height, within % width
        # All tokens of an image share the position of its first as their origin; only the last one advances the text.
        steps[slots] = 0
        steps[slots[sizes.cumsum() - 1]] = grids[:, 1:].max(axis=1)
    return torch.from_numpy(steps.cumsum() - steps + offsets)


def _frames(video_grid_thw: torch.Tensor | None) -> np.ndarray | None:
    """Split (t, h, w) into t grids of (1, h, w), because a timestamp precedes each of them."""
    if video_grid_thw is None:
        return None
    grids = np.asarray(video_grid_thw)
    frames = np.repeat(grids, grids[:, 0], axis=0)
    frames[:, 0] = 1
    return frames

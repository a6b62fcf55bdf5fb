"""Rescale and normalize patches on the device that they are used on, so that 8-bit pixels travel there."""

from typing import Any

import torch
from transformers import Qwen2VLImageProcessor

# Flags of the image processor's call that leave its rows of patches as the levels of the resized image, uint8.
AS_LEVELS = {"do_rescale": False, "do_normalize": False}


class PatchNormalizer:
    """Turns rows of patches in 8-bit levels into what Qwen3-VL's image processor makes of them, bit for bit.

    float32 pixels are four times as large, and a pack of 16,384 tokens has 0.4 GB of them: too much to be copied from
    worker to process to pinned memory to the GPU several times a second.
    """

    def __init__(self, image_processor: Qwen2VLImageProcessor) -> None:
        # A row holds all values of the first channel, then of the second and of the third.
        repeats = image_processor.temporal_patch_size * image_processor.patch_size**2
        levels = 1.0 / image_processor.rescale_factor
        self._mean, self._std = (
            (torch.tensor(values) * levels).repeat_interleave(repeats)
            for values in (image_processor.image_mean, image_processor.image_std)
        )

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (patches, values) as float32; rows that are floats already stay as they are."""
        if rows.is_floating_point():
            return rows
        self._mean, self._std = self._mean.to(rows.device), self._std.to(rows.device)
        return rows.to(torch.float32).sub_(self._mean).div_(self._std)


def patch_normalizer(image_processor: Any) -> PatchNormalizer | None:
    """Return what normalizes an image processor's rows of patches later; None where it has to do it itself."""
    is_known = isinstance(image_processor, Qwen2VLImageProcessor)
    if is_known and image_processor.do_rescale and image_processor.do_normalize:
        return PatchNormalizer(image_processor)
    return None

"""Read image files at the size that a model's image processor resizes them to, as fast as gives the same pixels."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv
from transformers import Qwen2VLImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from qwenvl.data.media.images import MAX_IMAGE_PIXELS, Resizing, load_image, read_reduced

# Those for which Pillow and torchvision give the same pixels, to one level.
_RESAMPLES = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


class ImageReader:
    """Reads an image file as what its image processor then leaves at its size: uint8 RGB (3, h, w).

    Pixels are those that the processor makes of `load_image`, but for JPEGs of at least twice that size (see
    `read_reduced`). Two steps are spared: gray is resized in one channel and not in three, and large JPEGs are decoded
    at reduced scale. A processor whose resize is not known gets what `load_image` reads.
    """

    def __init__(self, image_processor: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self.image_processor = image_processor
        self.max_pixels = max_pixels

    def __call__(self, path: str) -> torch.Tensor | Image.Image:
        """Return the image of a file; raises `UserError` for one that cannot be read."""
        # Asked for each image: the limits of a processor may be set after this reader is made.
        resizing = resizing_of(self.image_processor)
        if resizing is None:
            return load_image(path, self.max_pixels)
        image, full_size = read_reduced(path, resizing, self.max_pixels)
        size = resizing.resized_size(*full_size)
        pixels = tv.pil_to_tensor(image)
        if pixels.shape[-2:] != size:
            interpolation = pil_torch_interpolation_mapping[resizing.resample]
            pixels = tv.resize(pixels, list(size), interpolation=interpolation, antialias=True)
        return pixels.expand(3, -1, -1)


def resizing_of(image_processor: Any) -> Resizing | None:
    """Return how an image processor resizes images; None where that is not known.

    Known are Qwen3-VL's own image processor, and one that has `resized_size(height, width)` and `resized_by`.
    """
    if isinstance(image_processor, Qwen2VLImageProcessor) and image_processor.do_resize:
        resized_size, resample = _official_size(image_processor), image_processor.resample
    elif hasattr(image_processor, "resized_size"):
        resized_size, resample = image_processor.resized_size, image_processor.resized_by
    else:
        return None
    if resample not in _RESAMPLES:
        return None

    def lasting_size(height: int, width: int) -> tuple[int, int]:
        """Return the size that the processor leaves as it is; the full size where it has to do the resize itself."""
        try:
            size = resized_size(height, width)
            return size if resized_size(*size) == size else (height, width)
        # The processor refuses it, and says why when it gets the image.
        except ValueError:
            return height, width

    return Resizing(lasting_size, Image.Resampling(resample))


def _official_size(image_processor: Qwen2VLImageProcessor) -> Callable[[int, int], tuple[int, int]]:
    factor = image_processor.patch_size * image_processor.merge_size
    limits = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    return lambda height, width: smart_resize(height, width, factor, *limits)

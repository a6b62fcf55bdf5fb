"""Translate a Transformers image processor, from the file next to the weights, into a `Preprocessing`."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CONFIG_MAPPING, IMAGE_PROCESSOR_MAPPING, AutoImageProcessor, BaseImageProcessor
from transformers.models.auto.image_processing_auto import get_image_processor_config

from qwenvl.errors import UserError
from qwenvl.vision.hub import first_line, missing_weights
from qwenvl.vision.preprocessing import NAFLEX, UNKNOWN, WHITE, Geometry, Preprocessing, TokenRule

# PIL's numbers of filters. Lanczos has no tensor form, and the library replaces it by bicubic as well.
FILTERS = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
# From this size on, the image processor of ConvNeXt squashes instead of cropping.
CONVNEXT_SQUASHES_FROM = 384
# In levels of 0..255: the library rounds a resized image once, or never if it rescales first (DINOv3).
ROUNDING = 2.0
TRIAL_SIZE = (71, 113)


def published_preprocessing(path: str) -> Preprocessing | None:
    """Read the image processor of a folder or hub name; None if it has none.

    Values that the file leaves out are those of the image processor's class that it names. Raises `UserError` for a
    file that cannot be read, or that no preprocessing here can follow.
    """
    try:
        if not get_image_processor_config(path):
            return None
        processor = AutoImageProcessor.from_pretrained(path, backend="torchvision", trust_remote_code=False)
    except Exception as error:
        if not Path(path).exists():
            raise missing_weights(path, error) from error
        raise UserError(
            f"{path}: its image processor's file (preprocessor_config.json) cannot be used: {first_line(error)}; "
            "correct the file, or remove it to use the encoder's default preprocessing"
        ) from error
    return from_image_processor(processor, path)


@functools.cache
def default_preprocessing(model_type: str) -> Preprocessing | None:
    """Translate the library's default image processor for a model type; None if it has none that can be translated."""
    try:
        processor_class = IMAGE_PROCESSOR_MAPPING[CONFIG_MAPPING[model_type]]["torchvision"]
        return from_image_processor(processor_class(), model_type)
    except (KeyError, UserError):
        return None


def from_image_processor(processor: BaseImageProcessor, source: str) -> Preprocessing:
    """Translate an image processor's sizes, crop, filter and normalization, and compare both on one image.

    If only its resizing is not one of the policies, `resize` is "unknown". Raises `UserError`, naming `source`, for a
    filter or a normalization that a preprocessing cannot represent.
    """
    normalization = _normalization(processor, source)
    if hasattr(processor, "max_num_patches"):
        area = processor.max_num_patches * processor.patch_size**2
        return Preprocessing(resize=NAFLEX, max_pixels=area, **normalization)
    wanted = replace(_resize_policy(processor), **normalization)
    noise = np.random.default_rng(0).integers(0, 256, (*TRIAL_SIZE, 3), dtype=np.uint8)
    if wanted.resize != UNKNOWN and _is_equivalent(processor, wanted, noise):
        return wanted
    # An image of one color is the same under all policies.
    plain = replace(wanted, resize="squash", resize_edge=None)
    colors = [np.full((wanted.height, wanted.width, 3), level, dtype=np.uint8) for level in (0, 255)]
    if not all(_is_equivalent(processor, plain, color) for color in colors):
        raise UserError(
            f"{source}: {type(processor).__name__} does more to an image than resizing and normalizing; give a folder "
            "whose preprocessor_config.json is of a plain image processor, such as ViTImageProcessor, or that has no "
            "such file, for the encoder's default preprocessing"
        )
    return replace(plain, resize=UNKNOWN)


def _resize_policy(processor: BaseImageProcessor) -> Preprocessing:
    """Return the input size and how images are resized to it."""
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    edge, crop_share = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
    if crop and (edge or "height" in size):
        policy = "crop" if edge else "squash"
        return Preprocessing(crop["height"], crop["width"], policy, resize_edge=edge or size["height"])
    if edge and crop_share:
        squash = edge >= CONVNEXT_SQUASHES_FROM
        return Preprocessing(
            edge, edge, "squash" if squash else "crop", resize_edge=None if squash else int(edge / crop_share)
        )
    if "height" in size:
        return Preprocessing(size["height"], size["width"], "squash")
    side = edge or Preprocessing.height
    return Preprocessing(side, side, UNKNOWN)


def _normalization(processor: BaseImageProcessor, source: str) -> dict[str, Any]:
    """Return the filter, and the mean and std of RGB in 0..1 that are equivalent to rescaling and normalizing."""
    resample = getattr(processor, "resample", None)
    if resample is not None and resample not in FILTERS:
        raise UserError(
            f"{source}: resample {int(resample)} in preprocessor_config.json is a filter without a tensor form here; "
            "expected 0 (nearest), 1 (Lanczos, as bicubic), 2 (bilinear) or 3 (bicubic)"
        )
    factor = processor.rescale_factor * WHITE if getattr(processor, "do_rescale", True) else WHITE
    factor = 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor
    mean, std = (0.0,) * 3, (1.0,) * 3
    if getattr(processor, "do_normalize", True):
        mean = _to_rgb_triple(processor.image_mean, f"{source}: image_mean")
        std = _to_rgb_triple(processor.image_std, f"{source}: image_std")
    return {
        "mean": tuple(value / factor for value in mean),
        "std": tuple(value / factor for value in std),
        # The library's own choice if a processor names none.
        "interpolation": "bilinear" if resample is None else FILTERS[resample],
    }


def _to_rgb_triple(values: float | Sequence[float], name: str) -> tuple[float, float, float]:
    """Return one number for each channel."""
    numbers = (values,) if isinstance(values, int | float) else tuple(values or ())
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise UserError(f"{name} is {values}; expected one number, or one each for red, green and blue")
    return numbers


def _is_equivalent(processor: BaseImageProcessor, wanted: Preprocessing, image: np.ndarray) -> bool:
    """Whether the processor and the preprocessing agree on an image (H, W, 3) up to rounding."""
    try:
        expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    except Exception:  # Processors of videos, documents or audio may need other inputs.
        return False
    made = Geometry(wanted, TokenRule(1)).prepare(torch.from_numpy(image).permute(2, 0, 1)[None])
    if not isinstance(expected, torch.Tensor) or expected.shape != made.shape:
        return False
    one_level = 1 / (WHITE * torch.tensor(wanted.std).view(3, 1, 1))
    return bool(((made - expected).abs() <= ROUNDING * one_level).all())

"""Convert an image of any depth, or a DICOM file, to an 8-bit PNG or JPEG file."""

import errno
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwenvl.data.media.gray import GrayRange
from qwenvl.data.media.images import MAX_IMAGE_MEGAPIXELS, MEGAPIXEL, read_image
from qwenvl.errors import UserError
from qwenvl.utils.files import written_whole

FITS = ("shortest", "longest")
FORMATS = {"png": ".png", "jpg": ".jpg"}


@dataclass(frozen=True)
class ImageOptions:
    """How images are converted.

    Attributes:
        gray_range: The gray levels that become black and white.
        size: The length in pixels to which the side that `fit` names is reduced; None to keep the size.
        fit: One of `FITS`.
        format: One of `FORMATS`.
        quality: The JPEG quality, 1 to 100.
        frame: The frame of files with several; None to refuse them.
        max_image_megapixels: Larger images are refused.
    """

    gray_range: GrayRange = GrayRange()
    size: int | None = None
    fit: str = "shortest"
    format: str = "png"
    quality: int = 95
    frame: int | None = None
    max_image_megapixels: int = MAX_IMAGE_MEGAPIXELS

    def settings(self) -> dict[str, Any]:
        """Return everything that the pixels depend on, as JSON values."""
        settings = asdict(self)
        # Does not change pixels: it only decides which images are refused, and these are tried again in every run.
        del settings["max_image_megapixels"]
        gray_range = settings.pop("gray_range")
        return settings | {
            name: list(value) if isinstance(value, tuple) else value for name, value in gray_range.items()
        }


@dataclass(frozen=True)
class ImageTask:
    """One file to convert."""

    source: str
    target: str
    options: ImageOptions


def convert_image(task: ImageTask) -> str | None:
    """Convert one file; return None, or the reason why it failed. The target appears only when it is complete.

    Raises `UserError` if the target cannot be written, because every other one would fail in the same way.
    """
    try:
        image = _shrink(_read(task.source, task.options), task.options)
    except UserError as error:
        return error.reason_for(task.source)
    target = Path(task.target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        jpeg_options = {"quality": task.options.quality} if task.options.format == "jpg" else {}
        with written_whole(target, exclusive=True) as unfinished:
            image.save(unfinished, "JPEG" if task.options.format == "jpg" else "PNG", **jpeg_options)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"its name is too long for the disk of --out ({len(os.fsencode(target.name))} bytes); shorten it"
        raise UserError(f"{target}: cannot write it ({error.strerror or error}); make room or correct --out") from None
    return None


def _read(path: str, options: ImageOptions) -> Image.Image:
    """Return the image with 8 bits per channel, upright, in mode L or RGB; raises `UserError`."""
    with warnings.catch_warnings():
        # Libraries warn about files that are listed as failed anyway, or that are read correctly all the same.
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.ERROR)
        return read_image(path, options.gray_range, options.frame, options.max_image_megapixels * MEGAPIXEL)


def _shrink(image: Image.Image, options: ImageOptions) -> Image.Image:
    """Reduce the side that `fit` names to `size` and keep the aspect ratio; a smaller image is not changed."""
    side = min(image.size) if options.fit == "shortest" else max(image.size)
    if options.size is None or side <= options.size:
        return image
    width, height = (max(1, round(length * options.size / side)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)

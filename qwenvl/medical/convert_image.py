"""Convert one image of any depth, DICOM among them, to one 8-bit PNG or JPEG."""

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
from qwenvl.utils.files import partial_path

FITS = ("shortest", "longest")
FORMATS = {"png": ".png", "jpg": ".jpg"}


@dataclass(frozen=True)
class ImageOptions:
    """How images are converted: gray levels, the `size` of the side that `fit` names, file format, frame, limit."""

    gray_range: GrayRange = GrayRange()
    size: int | None = None
    fit: str = "shortest"
    format: str = "png"
    quality: int = 95
    frame: int | None = None
    max_image_megapixels: int = MAX_IMAGE_MEGAPIXELS

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the pixels, as JSON values."""
        settings = asdict(self)
        # Decides which images are refused, not what they look like: a refused one is tried again in any case.
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
    """Convert one file; return None, or the reason why it cannot be read. The target appears whole or not at all.

    Raises `UserError` where the target cannot be written: that would happen with every file.
    """
    try:
        picture = _shrunk(_read(task.source, task.options), task.options)
    except UserError as error:
        return error.reason_for(task.source)
    target = Path(task.target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if task.options.format == "png" else "JPEG"
        picture.save(partial_path(target), kind, **({} if kind == "PNG" else {"quality": task.options.quality}))
        os.replace(partial_path(target), target)
    except OSError as error:
        partial_path(target).unlink(missing_ok=True)
        if error.errno == errno.ENAMETOOLONG:
            return f"its name is too long for the disk of --out ({len(os.fsencode(target.name))} bytes); shorten it"
        raise UserError(f"{target}: cannot write it ({error.strerror or error}); make room or correct --out") from None
    return None


def _read(path: str, options: ImageOptions) -> Image.Image:
    """Return the image in 8 bits, upright, in mode L or RGB; raises `UserError`."""
    with warnings.catch_warnings():
        # Libraries warn of what the list of failures says, or of what is read right in spite of it.
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.ERROR)
        return read_image(path, options.gray_range, options.frame, options.max_image_megapixels * MEGAPIXEL)


def _shrunk(picture: Image.Image, options: ImageOptions) -> Image.Image:
    """Bring the named side to `size` with the aspect kept; a smaller picture stays as it is."""
    side = min(picture.size) if options.fit == "shortest" else max(picture.size)
    if options.size is None or side <= options.size:
        return picture
    width, height = (max(1, round(length * options.size / side)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)

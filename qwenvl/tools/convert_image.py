"""Owns the step from one picture of any depth, DICOM among them, to one 8-bit PNG or JPEG."""

import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from qwenvl.data.dicom import HEAD_BYTES, is_dicom
from qwenvl.data.grayscale import MEDICAL_EXTRA, GreyRange, dicom_to_uint8, picture_to_uint8
from qwenvl.data.images import MAX_IMAGE_PIXELS, load_image
from qwenvl.errors import UserError
from qwenvl.tools.cli import partial_path

FITS = ("shortest", "longest")
FORMATS = {"png": ".png", "jpg": ".jpg"}
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageOptions:
    """How pictures are converted: grey levels, the `size` of the side that `fit` names, file format, frame."""

    grey_range: GreyRange = GreyRange()
    size: int | None = None
    fit: str = "shortest"
    format: str = "png"
    quality: int = 95
    frame: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the pixels, as JSON values."""
        settings = asdict(self)
        grey_range = settings.pop("grey_range")
        return settings | {
            name: list(value) if isinstance(value, tuple) else value for name, value in grey_range.items()
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
        return str(error).removeprefix(f"{task.source}: ")
    target = Path(task.target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if task.options.format == "png" else "JPEG"
        picture.save(partial_path(target), kind, **({} if kind == "PNG" else {"quality": task.options.quality}))
        os.replace(partial_path(target), target)
    except OSError as error:
        partial_path(target).unlink(missing_ok=True)
        raise UserError(f"{target}: cannot write it ({error.strerror or error}); make room or correct --out") from None
    return None


def _read(path: str, options: ImageOptions) -> Image.Image:
    """Return the picture in 8 bits, upright, in mode L or RGB; raises `UserError`."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UserError(f"cannot open it ({error.strerror})") from None
    if not head:
        raise UserError("the file is empty (0 bytes)")
    with warnings.catch_warnings():
        # Libraries warn of what the list of failures says, or of what is read right in spite of it.
        warnings.simplefilter("ignore")
        return _read_dicom(path, options) if is_dicom(path, head) else _read_picture(path, options)


def _read_dicom(path: str, options: ImageOptions) -> Image.Image:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"DICOM needs pydicom: {MEDICAL_EXTRA}") from None
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    try:
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        raise UserError("no DICOM file: the mark DICM is missing at byte 128") from None
    # A damaged header makes pydicom raise nearly anything.
    except Exception as error:
        raise UserError(f"damaged DICOM header: {' '.join(str(error).split())}") from error
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if isinstance(rows, int) and isinstance(columns, int):
        _check_size(rows, columns)
    return Image.fromarray(dicom_to_uint8(dataset, options.grey_range, options.frame))


def _read_picture(path: str, options: ImageOptions) -> Image.Image:
    try:
        with Image.open(path) as picture:
            mode, frames = picture.mode, getattr(picture, "n_frames", 1)
            _check_size(picture.height, picture.width)
            if frames > 1 and options.frame is None:
                raise UserError(f"{frames} frames in one file; pick one with --frame 0 to {frames - 1}")
            if mode.startswith(_DEEP_MODES) or options.frame:
                picture.seek(options.frame or 0)
                upright = ImageOps.exif_transpose(picture_to_uint8(picture, options.grey_range))
                return upright.convert("L" if upright.mode in _GREY_MODES else "RGB")
    except EOFError:
        raise UserError(f"frame {options.frame} is not there: the file has {frames}") from None
    except Image.DecompressionBombError:
        raise UserError(f"more pixels than the limit of {MAX_IMAGE_PIXELS}") from None
    except UserError:
        raise
    # Damaged files make decoders raise nearly anything; `load_image` finds the words for those it opens.
    except Exception as error:
        reason = " ".join(str(error).split()).removesuffix(repr(path)).removesuffix("file ")
        raise UserError(f"cannot read the picture ({reason})") from error
    upright = load_image(path)
    return upright.convert("L") if mode in _GREY_MODES else upright


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_IMAGE_PIXELS:
        raise UserError(f"{width} x {height} pixels are more than the limit of {MAX_IMAGE_PIXELS}")


def _shrunk(picture: Image.Image, options: ImageOptions) -> Image.Image:
    """Bring the named side to `size` with the aspect kept; a smaller picture stays as it is."""
    side = min(picture.size) if options.fit == "shortest" else max(picture.size)
    if options.size is None or side <= options.size:
        return picture
    width, height = (max(1, round(length * options.size / side)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)

"""Owns the step from one image file to one RGB picture, and the size of that picture from the header alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from qwenvl.data.dicom import HEAD_BYTES, dicom_pixels, dicom_size, is_dicom
from qwenvl.errors import UserError

# 8192 x 8192: twice the longest side of a chest film, and 200 MB in memory. Below the size at which Pillow warns.
MAX_IMAGE_PIXELS = 2**26

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(UserError):
    """An image file that cannot be read; the message names it and says why."""


def load_image(path: str) -> Image.Image:
    """Read an image file (the first frame of several) as an upright RGB picture.

    - Transparent parts show white, as in qwen-vl-utils.
    - Values deeper than 8 bits (16-bit, 32-bit, float) are spread linearly from the smallest to the largest of the
      picture over 0..255. The depth of the file would not do: 12-bit films in 16-bit files would come out nearly
      black, and scanners store offsets. So a grey value is relative to its picture; who needs absolute values writes
      8-bit files. A picture of one value is black, NaN too.
    - DICOM is shown through its own window.
    - The EXIF orientation is applied.

    Raises `ImageError`, and `UserError` for DICOM without pydicom.
    """
    with _errors_named(path), open(path, "rb") as file:
        if _is_dicom(path, file):
            _check_pixel_count(*dicom_size(path))
            return Image.fromarray(dicom_pixels(path)).convert("RGB")
        with Image.open(file) as picture:
            _check_pixel_count(picture.height, picture.width)
            # Pillow turns a TIFF while it decodes it.
            turn = None if picture.format == "TIFF" else _TURNS.get(_orientation(picture))
            picture.load()
            rgb = _rgb(picture)
    return rgb if turn is None else rgb.transpose(turn)


def image_size(path: str) -> tuple[int, int]:
    """Return (height, width) in pixels of the picture that `load_image` gives, from the header alone.

    Raises `ImageError`, and `UserError` for DICOM without pydicom.
    """
    with _errors_named(path), open(path, "rb") as file:
        if _is_dicom(path, file):
            height, width = dicom_size(path)
        else:
            with Image.open(file) as picture:
                height, width = picture.height, picture.width
                # Pillow swaps the size of a TIFF itself where the tag (not XMP) says that it lies on its side.
                swapped = picture.format == "TIFF" and ExifTags.Base.Orientation in picture.tag_v2
                if _orientation(picture) in _SIDEWAYS and not swapped:
                    height, width = width, height
        _check_pixel_count(height, width)
        return height, width


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file; correct the path") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{path}: not an image of a known format; give PNG, JPEG, TIFF, WebP or DICOM") from None
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error, IndexError...
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"{path}: cannot read the image ({reason}); replace or convert the file") from error


def _is_dicom(path: str, file: BinaryIO) -> bool:
    head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError(f"{path}: the image file is empty (0 bytes); replace it")
    file.seek(0)
    return is_dicom(path, head)


def _check_pixel_count(height: int, width: int) -> None:
    if height * width > MAX_IMAGE_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_IMAGE_PIXELS}: make it smaller")


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of a picture of which only the header was read."""
    # To look for an EXIF chunk behind the pixels Pillow would decode the whole PNG, so only one before them counts.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block says nothing about the pixels.
    except Exception:
        return 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _eight_bit(np.asarray(picture)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("RGB")


def _eight_bit(values: np.ndarray) -> Image.Image:
    """Spread grey values (H, W) linearly over 0..255; infinite values count as the nearest finite one."""
    values = values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no pixel has a finite value")
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    if low == high:
        return Image.new("L", values.shape[::-1])
    spread = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low)
    return Image.fromarray(np.rint(spread * 255).astype(np.uint8))

"""Owns the step from one image file to one RGB picture, and the size of that picture from the header alone."""

from PIL import Image

from qwenvl.errors import UserError


class ImageError(UserError):
    """An image file that cannot be read; the message names it and says why."""


def load_image(path: str) -> Image.Image:
    """Read an image file as an RGB picture, upright; raises `ImageError`."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise ImageError(f"{path}: {error}") from error


def image_size(path: str) -> tuple[int, int]:
    """Return (height, width) in pixels of the picture that `load_image` gives; raises `ImageError`."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except OSError as error:
        raise ImageError(f"{path}: {error}") from error

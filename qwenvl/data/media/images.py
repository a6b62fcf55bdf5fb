"""Read one image file as one RGB image, and the size of that image from the header alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from PIL import ExifTags, Image

from qwenvl.data.media.deep_images import deep_pixels
from qwenvl.data.media.dicom import (
    HEAD_BYTES,
    PIXEL_LIMIT_REMEDY,
    check_pixel_count,
    dicom_pixels,
    dicom_size,
    is_dicom,
)
from qwenvl.data.media.files import file_flaw, max_file_bytes
from qwenvl.data.media.gray import GrayRange
from qwenvl.data.media.tiff_layouts import TIFF_MARKS, GrayLayout, relabel_gray
from qwenvl.errors import UserError

MEGAPIXEL = 2**20
# 8192 x 8192: twice the longest side of a chest X-ray, and 200 MB in memory. Below the size at which Pillow warns.
MAX_IMAGE_MEGAPIXELS = 64
MAX_IMAGE_PIXELS = MAX_IMAGE_MEGAPIXELS * MEGAPIXEL

# A JPEG is decoded at reduced scale where that leaves at least twice the size that it is resized to, so that the resize
# still does the averaging. Pillow's thumbnails have the same gap.
_REDUCING_GAP = 2

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
_GRAY_MODES = ("1", "L", "LA")


class ImageError(UserError):
    """An image file that cannot be read; the message names it and says why."""


class Resizing(NamedTuple):
    """What is done with an image after it is read: to which size of its full one, both (height, width), and how."""

    resized_size: Callable[[int, int], tuple[int, int]]
    resample: Image.Resampling


def load_image(path: str, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Read an image file (the first frame of several) as an upright RGB image.

    - Transparent parts show white, as in qwen-vl-utils.
    - Values deeper than 8 bits (16-bit, 32-bit, float; gray or color) are spread linearly from the smallest to the
      largest of the image over 0..255. The depth of the file would not do: 12-bit X-rays in 16-bit files would come
      out nearly black, and scanners store offsets. So such a value is relative to its image; who needs absolute values
      writes 8-bit files. An image of one value is black, NaN too.
    - DICOM is shown through its own window.
    - The EXIF orientation is applied.

    Raises `ImageError`, and `UserError` for DICOM without pydicom.
    """
    return read_image(path, GrayRange("window"), max_pixels=max_pixels).convert("RGB")


def read_image(
    path: str, gray_range: GrayRange, frame: int | None = 0, max_pixels: int = MAX_IMAGE_PIXELS
) -> Image.Image:
    """Read one frame of an image file as `load_image` does, with another range for deep values; gray stays mode L.

    `frame` None is the only frame of a file that must have just one. Raises as `load_image` does.
    """
    return _read(path, gray_range, frame, max_pixels)[0]


def read_reduced(
    path: str, resizing: Resizing, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image file as `load_image` does, and return it with its full size (height, width); gray stays mode L.

    A JPEG of at least twice the size that it is resized to is decoded at reduced scale, which saves most of the
    resize, and comes resized; any other image has its full size. The mean difference from reading it whole is below
    0.5 of 255 levels. Raises as `load_image` does, and what `resizing.resized_size` raises, as an `ImageError`.
    """
    return _read(path, GrayRange("window"), 0, max_pixels, resizing)


def _read(
    path: str, gray_range: GrayRange, frame: int | None, max_pixels: int, resizing: Resizing | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image and its full size (height, width); with `resizing`, a large JPEG is resized already."""
    with _opened(path, max_pixels) as file:
        if _is_dicom(path, file):
            image = Image.fromarray(dicom_pixels(path, max_pixels, gray_range, frame))
            return image, (image.height, image.width)
        source, file, layout = _open_image(file)
        with source:
            # Before the frames are looked for, which takes long in what only looks like a large image.
            check_pixel_count(*_size(source, layout), max_pixels)
            _seek(source, frame)
            check_pixel_count(*_size(source, layout), max_pixels)
            full_size = _upright_size(source, layout)
            # Pillow turns a TIFF while it decodes it.
            orientation = 1 if source.format == "TIFF" else _orientation(source)
            if resizing is not None and source.format == "JPEG":
                resized = resizing.resized_size(*full_size)
                size = resized if orientation in _SIDEWAYS else resized[::-1]
                image = _decode_jpeg(source, size, resizing.resample)
            else:
                deep = deep_pixels(source, file, frame or 0)
                if layout is not None and not frame:
                    deep = layout.restore(deep)
                image = deep.to_image(gray_range) if deep is not None else _eight_bit(source)
    return (image.transpose(_TURNS[orientation]) if orientation in _TURNS else image), full_size


def _decode_jpeg(source: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Decode a JPEG at reduced scale and resize it to (width, height), or decode it whole where it is too small."""
    full_width = source.width
    draft = source.draft(None, (_REDUCING_GAP * size[0], _REDUCING_GAP * size[1]))
    image = _eight_bit(source)
    if draft is None or source.width == full_width:
        return image
    # Of the last reduced pixels of a row and of a column, a part may lie outside the image.
    _, box = draft
    return image.resize(size, resample, box)


def image_size(path: str, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Return (height, width) in pixels of the image that `load_image` gives, from the header alone.

    Raises `ImageError`, and `UserError` for DICOM without pydicom.
    """
    with _opened(path, max_pixels) as file:
        if _is_dicom(path, file):
            height, width = dicom_size(path, max_pixels)
        else:
            source, _, layout = _open_image(file)
            with source:
                height, width = _upright_size(source, layout)
        check_pixel_count(height, width, max_pixels)
        return height, width


@contextmanager
def _opened(path: str, max_pixels: int) -> Iterator[BinaryIO]:
    """Open an image file, and name it in whatever goes wrong with it."""
    flaw = file_flaw(path, "image file", max_file_bytes(max_pixels))
    if flaw is not None:
        raise ImageError(flaw, path=path)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        # Pillow's own limit, which it documents as one to be set; above ours it would refuse what was allowed.
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with open(path, "rb") as file:
            yield file
    except UserError as error:
        raise error if error.path is not None else ImageError(error.reason, path=path) from None
    except Image.UnidentifiedImageError:
        with open(path, "rb") as file:
            is_tiff = file.read(4) in TIFF_MARKS
        reason = (
            "a TIFF of a layout that Pillow cannot read, such as floats of 64 bits; save it as PNG"
            if is_tiff
            else "not an image of a known format; give PNG, JPEG, TIFF, WebP or DICOM"
        )
        raise ImageError(reason, path=path) from None
    except Image.DecompressionBombError:
        # Above twice Pillow's own limit, which is met before ours.
        reason = f"its pixels are more than the limit of {max_pixels}: {PIXEL_LIMIT_REMEDY}"
        raise ImageError(reason, path=path) from None
    except MemoryError:
        raise ImageError("reading the image takes more memory than there is; make it smaller", path=path) from None
    # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib.error, IndexError...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot read the image ({reason}); replace or convert the file", path=path) from error


def _open_image(file: BinaryIO) -> tuple[Image.Image, BinaryIO, GrayLayout | None]:
    """Open an image without decoding it; return it, the file that it is read from, and the layout if relabeled."""
    try:
        return Image.open(file), file, None
    except Image.UnidentifiedImageError:
        relabeled = relabel_gray(file)
        if relabeled is None:
            raise
    file, layout = relabeled
    return Image.open(file), file, layout


def _size(source: Image.Image, layout: GrayLayout | None) -> tuple[int, int]:
    """Return (height, width) as the file means it."""
    return source.height, source.width // (2 if layout is not None and layout.has_alpha else 1)


def _upright_size(source: Image.Image, layout: GrayLayout | None) -> tuple[int, int]:
    """Return (height, width) of the image that is shown."""
    height, width = _size(source, layout)
    # Pillow swaps the size of a TIFF itself where the tag (not XMP) says that it lies on its side.
    swapped = source.format == "TIFF" and ExifTags.Base.Orientation in source.tag_v2
    return (width, height) if _orientation(source) in _SIDEWAYS and not swapped else (height, width)


def _is_dicom(path: str, file: BinaryIO) -> bool:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return is_dicom(path, head)


def _seek(source: Image.Image, frame: int | None) -> None:
    """Go to a frame, counted from 0; raises `ValueError` where it is not there, or not the only one and None."""
    if frame == 0:
        return
    frames = getattr(source, "n_frames", 1)
    if frame is None and frames > 1:
        raise ValueError(f"{frames} frames in one file; pick one with --frame 0 to {frames - 1}")
    if frame is not None and frame >= frames:
        raise ValueError(f"frame {frame} is not there: the file has {frames}")
    # Counting has moved a TIFF on.
    source.seek(frame or 0)


def _orientation(source: Image.Image) -> int:
    """Return the EXIF orientation (1 to 8) of an image of which only the header was read."""
    # To look for an EXIF chunk behind the pixels Pillow would decode the whole PNG, so only one before them counts.
    if source.format == "PNG" and "exif" not in source.info:
        return 1
    try:
        return source.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block says nothing about the pixels.
    except Exception:
        return 1


def _eight_bit(source: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel in mode L where it is gray, else in RGB, and white where transparent."""
    mode = "L" if source.mode in _GRAY_MODES else "RGB"
    if not source.has_transparency_data:
        source.load()
        # Converting would copy all pixels even where there is nothing to convert.
        return source if source.mode == mode else source.convert(mode)
    canvas = Image.new("RGBA", source.size, "white")
    canvas.alpha_composite(source.convert("RGBA"))
    return canvas.convert("RGB").convert(mode)

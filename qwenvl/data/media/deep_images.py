"""Read all bits of images deeper than 8 bits, also of the color images of which Pillow keeps the upper 8 bits alone."""

import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from qwenvl.data.media.gray import GrayRange, levels_to_uint8, limits_of

_WHITE_IS_ZERO = 0
_UNSIGNED = 1
_SEPARATE_PLANES = 2
_PREMULTIPLIED = "RGBa"
_NATIVE_ORDER = {"I;16BS": "I;16NS", "I;16S": "I;16NS", "I;32BS": "I;32NS", "I;32S": "I;32NS"}
_NATIVE_ORDER |= {"F;32BF": "F;32NF", "F;32F": "F;32NF"}
# Depths that scanners and cameras store in 16 bits.
_DEPTHS = (10, 12, 14, 16)


@dataclass(frozen=True)
class DeepPixels:
    """The values of an image as stored.

    `levels` (H, W) or (H, W, 3), integers or floats; `opacity` (H, W) from 0 to 1, or None where all is opaque; `bits`
    that each level was stored with, None for floats; `white_is_zero` where large values are dark.
    """

    levels: np.ndarray
    opacity: np.ndarray | None = None
    bits: int | None = None
    white_is_zero: bool = False

    def to_image(self, gray_range: GrayRange) -> Image.Image:
        """Return mode L or RGB: the levels of `gray_range`, one range for all channels, and white where transparent.

        What is wholly transparent does not widen the range. Raises `UserError` for a range that does not fit.
        """
        shown = self.levels if self.opacity is None else self.levels[self.opacity > 0]
        low, high = limits_of(shown if shown.size else self.levels, gray_range, self.bits)
        pixels = levels_to_uint8(self.levels, low, high)
        if self.white_is_zero:
            pixels = 255 - pixels
            if self.levels.dtype.kind == "f":
                pixels[np.isnan(self.levels)] = 0
        if self.opacity is not None:
            opacity = self.opacity if pixels.ndim == 2 else self.opacity[..., None]
            pixels = np.rint(255 - opacity * (255.0 - pixels)).astype(np.uint8)
        return Image.fromarray(pixels)


def deep_pixels(picture: Image.Image, file: BinaryIO, frame: int = 0) -> DeepPixels | None:
    """Return all bits of an opened image that is not decoded yet; None for one of 8 bits a channel.

    `picture` stands at `frame` of `file`, which is read a second time for color. Raises what Pillow raises for damaged
    files, and `ValueError` for a layout of which the lower bits cannot be had.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _gray(picture, tags)
    tiles = _sixteen_bit_tiles(picture, tags)
    if tiles is None or picture.mode not in ("RGB", "RGBA"):
        return None
    if tiles[0] == "LA;16B":
        # Two bytes of gray and two of alpha, read as the four channels of one pixel.
        samples = _samples(picture, ["RGBA"] * len(tiles)).view(">u2")
        levels, alpha = samples[..., 0], samples[..., 1]
    else:
        upper = _samples(picture, tiles)
        with Image.open(file) as again:
            again.seek(frame)
            lower = _samples(again, [_other_byte_order(tile) for tile in _sixteen_bit_tiles(again, tags)])
        samples = upper.astype(np.uint16) << 8 | lower
        levels, alpha = samples[..., :3], samples[..., 3] if samples.shape[2] == 4 else None
    key = picture.info.get("transparency")
    if alpha is None:
        return DeepPixels(levels, None if key is None else (levels != key).any(-1).astype(np.float32), 16)
    full = full_value(samples)
    opacity = alpha.astype(np.float32) / full
    if any(extra == 1 for extra in _tuple(tags.get(TiffImagePlugin.EXTRASAMPLES))):
        levels = _without_alpha(levels, opacity, full)
    return DeepPixels(levels, opacity, 16)


def full_value(samples: np.ndarray) -> int:
    """Return what full opacity is in 16-bit samples of any shape, from the bits that are used of them."""
    return 2 ** next(depth for depth in _DEPTHS if samples.max() < 2**depth) - 1


def _gray(picture: Image.Image, tags: Any) -> DeepPixels:
    raw_modes = _raw_modes(picture)
    if raw_modes and picture.tile[0].codec_name == "libtiff":
        # libtiff gives the machine's byte order, of which Pillow 13 tells only unsigned 16-bit images
        # (TiffImagePlugin.py, "libtiff always returns the bytes in native order").
        _set_raw_modes(picture, [_NATIVE_ORDER.get(raw_mode, raw_mode) for raw_mode in raw_modes])
    levels = np.asarray(picture)
    bits = _tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE)) or ((16,) if picture.mode.startswith("I;16") else (32,))
    if levels.dtype == np.int32 and bits == (32,) and tags.get(TiffImagePlugin.SAMPLEFORMAT, (0,)) == (_UNSIGNED,):
        # Pillow's mode I is signed, whatever the file says.
        levels = levels.view(np.uint32)
    key = picture.info.get("transparency")
    return DeepPixels(
        levels,
        (levels != key).astype(np.float32) if isinstance(key, int) else None,
        None if levels.dtype.kind == "f" else bits[0],
        tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO,
    )


def _sixteen_bit_tiles(picture: Image.Image, tags: Any) -> list[str] | None:
    """Return the raw mode, in Pillow's words, of each of the image's tiles; None where they are not of 16 bits."""
    raw_modes = _raw_modes(picture)
    if picture.format not in ("PNG", "TIFF") or not raw_modes:
        return None
    if tags and set(_tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE))) == {16}:
        separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE_PLANES
        if separate and picture.tile[0].codec_name == "libtiff":
            raise ValueError("a compressed 16-bit TIFF with separate color planes; save it with interleaved channels")
        if separate:
            # Pillow names the plane alone, as if its samples were bytes.
            order = ";16L" if tags.prefix == b"II" else ";16B"
            raw_modes = [plane if ";16" in plane else plane + order for plane in raw_modes]
    return raw_modes if ";16" in raw_modes[0] else None


def _samples(picture: Image.Image, raw_modes: list[str]) -> np.ndarray:
    """Decode one byte of each sample, (H, W, channels) uint8: the upper one, or the lower in the wrong byte order."""
    # RGBa would be divided by its alpha at once, in 8 bits.
    _set_raw_modes(picture, [raw_mode.replace(_PREMULTIPLIED, "RGBA") for raw_mode in raw_modes])
    return np.array(picture)


def _raw_modes(picture: Image.Image) -> list[str]:
    """Return how the bytes of each tile become pixels, in Pillow's words; nothing without tiles."""
    args = [tile.args for tile in getattr(picture, "tile", ())]
    return [each if isinstance(each, str) else str(each[0]) for each in args if each]


def _set_raw_modes(picture: Image.Image, raw_modes: list[str]) -> None:
    picture.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile, raw_mode in zip(picture.tile, raw_modes, strict=True)
    ]


def _other_byte_order(raw_mode: str) -> str:
    native = "L" if sys.byteorder == "little" else "B"
    stem, order = raw_mode[:-1], raw_mode[-1].replace("N", native)
    return stem + ("B" if order == "L" else "L")


def _without_alpha(levels: np.ndarray, opacity: np.ndarray, full: int) -> np.ndarray:
    """Undo the multiplication by alpha that a TIFF of associated alpha holds."""
    divided = levels / np.maximum(opacity, 1 / full)[..., None]
    return np.rint(np.minimum(divided, full)).astype(np.uint16)


def _tuple(value: Any) -> tuple:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)

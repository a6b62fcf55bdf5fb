"""Read all bits of images deeper than 8 bits a channel, color included.

Pillow has no mode for more than one channel of more than 8 bits, and keeps only the upper 8 bits of each. Their lower
bits are read here by decoding the file a second time in the wrong byte order. Can go when Pillow has such modes:
https://github.com/python-pillow/Pillow/issues/1888.
"""

import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from qwenvl.data.media.gray import GrayRange, levels_to_uint8, limits_of

# Values of the TIFF tags PhotometricInterpretation, SampleFormat, PlanarConfiguration and ExtraSamples.
_WHITE_IS_ZERO = 0
_UNSIGNED = 1
_SEPARATE_PLANES = 2
_ASSOCIATED_ALPHA = 1
_PREMULTIPLIED = "RGBa"
_NATIVE_ORDER = {"I;16BS": "I;16NS", "I;16S": "I;16NS", "I;32BS": "I;32NS", "I;32S": "I;32NS"}
_NATIVE_ORDER |= {"F;32BF": "F;32NF", "F;32F": "F;32NF"}
# Depths that scanners and cameras store in 16 bits.
_DEPTHS = (10, 12, 14, 16)


@dataclass(frozen=True)
class DeepPixels:
    """The values of an image as stored.

    `levels` (H, W) or (H, W, 3) are integers or floats. `opacity` (H, W) is from 0 to 1, or None for an opaque image.
    `bits` is how many each level was stored with, None for floats. With `white_is_zero` large values are dark.
    """

    levels: np.ndarray
    opacity: np.ndarray | None = None
    bits: int | None = None
    white_is_zero: bool = False

    def to_image(self, gray_range: GrayRange) -> Image.Image:
        """Return mode L or RGB: the levels of `gray_range`, one range for all channels, and white where transparent.

        Fully transparent pixels do not widen the range. Raises `UserError` for a range that does not fit the levels.
        """
        visible = self.levels if self.opacity is None else self.levels[self.opacity > 0]
        low, high = limits_of(visible if visible.size else self.levels, gray_range, self.bits)
        pixels = levels_to_uint8(self.levels, low, high)
        if self.white_is_zero:
            pixels = 255 - pixels
            if self.levels.dtype.kind == "f":
                pixels[np.isnan(self.levels)] = 0
        if self.opacity is not None:
            opacity = self.opacity if pixels.ndim == 2 else self.opacity[..., None]
            pixels = np.rint(255 - opacity * (255.0 - pixels)).astype(np.uint8)
        return Image.fromarray(pixels)


def deep_pixels(image: Image.Image, file: BinaryIO, frame: int = 0) -> DeepPixels | None:
    """Return all bits of an opened image that is not decoded yet; None for one of 8 bits a channel.

    `image` is at `frame` of `file`, which is read a second time for color. Raises what Pillow raises for damaged
    files, and `ValueError` for a layout whose lower bits cannot be read.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _gray(image, tags)
    tiles = _sixteen_bit_tiles(image, tags)
    if tiles is None or image.mode not in ("RGB", "RGBA"):
        return None
    if tiles[0] == "LA;16B":
        # Pillow's raw mode drops the lower bytes. Read as RGBA, a pixel has all four: two of gray and two of alpha. Can
        # go with the module: https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/PngImagePlugin.py#L96
        samples = _samples(image, ["RGBA"] * len(tiles)).view(">u2")
        levels, alpha = samples[..., 0], samples[..., 1]
    else:
        upper = _samples(image, tiles)
        with Image.open(file) as second_image:
            second_image.seek(frame)
            lower = _samples(second_image, [_other_byte_order(tile) for tile in _sixteen_bit_tiles(second_image, tags)])
        samples = upper.astype(np.uint16) << 8 | lower
        levels, alpha = samples[..., :3], samples[..., 3] if samples.shape[2] == 4 else None
    key = image.info.get("transparency")
    if alpha is None:
        return DeepPixels(levels, None if key is None else (levels != key).any(-1).astype(np.float32), 16)
    full = full_value(samples)
    opacity = alpha.astype(np.float32) / full
    if _ASSOCIATED_ALPHA in _as_tuple(tags.get(TiffImagePlugin.EXTRASAMPLES)):
        levels = _without_alpha(levels, opacity, full)
    return DeepPixels(levels, opacity, 16)


def full_value(samples: np.ndarray) -> int:
    """Return the value of full opacity in 16-bit samples of any shape, from the number of bits that they use."""
    return 2 ** next(depth for depth in _DEPTHS if samples.max() < 2**depth) - 1


def _gray(image: Image.Image, tags: Any) -> DeepPixels:
    raw_modes = _raw_modes(image)
    if raw_modes and image.tile[0].codec_name == "libtiff":
        # libtiff returns the machine's byte order, which Pillow takes into account for unsigned 16 bits only. Can go
        # when it does so for all: https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/TiffImagePlugin.py#L1640-L1647
        _set_raw_modes(image, [_NATIVE_ORDER.get(raw_mode, raw_mode) for raw_mode in raw_modes])
    levels = np.asarray(image)
    bits = _as_tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE)) or ((16,) if image.mode.startswith("I;16") else (32,))
    if levels.dtype == np.int32 and bits == (32,) and tags.get(TiffImagePlugin.SAMPLEFORMAT, (0,)) == (_UNSIGNED,):
        # Pillow reads unsigned 32 bits into its mode I, which is signed. Can go when there is an unsigned mode:
        # https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/TiffImagePlugin.py#L206
        levels = levels.view(np.uint32)
    key = image.info.get("transparency")
    return DeepPixels(
        levels,
        (levels != key).astype(np.float32) if isinstance(key, int) else None,
        None if levels.dtype.kind == "f" else bits[0],
        tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO,
    )


def _sixteen_bit_tiles(image: Image.Image, tags: Any) -> list[str] | None:
    """Return Pillow's raw mode for each of the image's tiles; None where they do not have 16 bits a sample."""
    raw_modes = _raw_modes(image)
    if image.format not in ("PNG", "TIFF") or not raw_modes:
        return None
    if tags and set(_as_tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE))) == {16}:
        separate = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE_PLANES
        if separate and image.tile[0].codec_name == "libtiff":
            raise ValueError("a compressed 16-bit TIFF with separate color planes; save it with interleaved channels")
        if separate:
            # Pillow names only the channel, as if its samples were bytes. Can go when the name has the depth:
            # https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/TiffImagePlugin.py#L1681-L1683
            order = ";16L" if tags.prefix == b"II" else ";16B"
            raw_modes = [plane if ";16" in plane else plane + order for plane in raw_modes]
    return raw_modes if ";16" in raw_modes[0] else None


def _samples(image: Image.Image, raw_modes: list[str]) -> np.ndarray:
    """Decode one byte of each sample, (H, W, channels) uint8: the upper one, or the lower in the wrong byte order."""
    # Pillow divides RGBa by its alpha while it decodes, in 8 bits. Can go with the module:
    # https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/TiffImagePlugin.py#L249
    _set_raw_modes(image, [raw_mode.replace(_PREMULTIPLIED, "RGBA") for raw_mode in raw_modes])
    return np.array(image)


def _raw_modes(image: Image.Image) -> list[str]:
    """Return Pillow's raw mode for each tile, which is how its bytes become pixels; nothing without tiles."""
    args = [tile.args for tile in getattr(image, "tile", ())]
    return [each if isinstance(each, str) else str(each[0]) for each in args if each]


def _set_raw_modes(image: Image.Image, raw_modes: list[str]) -> None:
    image.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile, raw_mode in zip(image.tile, raw_modes, strict=True)
    ]


def _other_byte_order(raw_mode: str) -> str:
    native = "L" if sys.byteorder == "little" else "B"
    stem, order = raw_mode[:-1], raw_mode[-1].replace("N", native)
    return stem + ("B" if order == "L" else "L")


def _without_alpha(levels: np.ndarray, opacity: np.ndarray, full: int) -> np.ndarray:
    """Undo the multiplication by alpha in a TIFF of associated alpha."""
    divided = levels / np.maximum(opacity, 1 / full)[..., None]
    return np.rint(np.minimum(divided, full)).astype(np.uint16)


def _as_tuple(value: Any) -> tuple:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)

"""Tests of relabeling gray TIFF files that Pillow does not open."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from qwenvl.data.media.deep_images import DeepPixels
from qwenvl.data.media.tiff_layouts import GrayLayout, relabel_gray
from tests.data.deep_files import tiff

GRAY = np.random.default_rng(0).integers(100, 4096, (5, 4, 1)).astype(np.uint16)
ALPHA = np.random.default_rng(1).integers(100, 4096, (5, 4, 1)).astype(np.uint16)
BOTH = np.concatenate([GRAY, ALPHA], -1)


def relabeled(data: bytes) -> tuple[np.ndarray, GrayLayout]:
    file, layout = relabel_gray(io.BytesIO(data))
    return np.asarray(Image.open(file)).astype(np.uint16), layout


def with_tag(data: bytes, old: int, new: int, value: int) -> bytes:
    """Replace one tag of the first page of a little-endian TIFF by another with a short value."""
    changed = bytearray(data)
    (number,) = struct.unpack_from("<H", data, 8)
    for start in range(10, 10 + 12 * number, 12):
        if struct.unpack_from("<H", data, start)[0] == old:
            changed[start : start + 12] = struct.pack("<HHIHH", new, 3, 1, value, 0)
    assert changed != data
    return bytes(changed)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_gray_and_alpha_become_twice_as_many_pixels_of_gray(order: str, photometric: int):
    data = tiff(BOTH, photometric, order, extra=2)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data))
    levels, layout = relabeled(data)
    assert layout == GrayLayout(white_is_zero=photometric == 0, has_alpha=True)
    np.testing.assert_array_equal(levels.reshape(5, 4, 2), BOTH)


def test_big_endian_gray_where_zero_is_white_is_relabeled():
    data = tiff(GRAY, 0, ">")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data))
    levels, layout = relabeled(data)
    assert layout == GrayLayout(white_is_zero=True, has_alpha=False)
    np.testing.assert_array_equal(levels, GRAY[..., 0])


def test_the_pixels_are_restored_as_the_file_means_them():
    deep = DeepPixels(BOTH.reshape(5, 8), bits=16)
    restored = GrayLayout(white_is_zero=True, has_alpha=True).restore(deep)
    np.testing.assert_array_equal(restored.levels, GRAY[..., 0])
    np.testing.assert_allclose(restored.opacity, ALPHA[..., 0] / 4095, rtol=1e-6)
    assert restored.white_is_zero and restored.bits == 16
    without = GrayLayout(white_is_zero=True, has_alpha=False).restore(deep)
    assert without.white_is_zero and without.opacity is None and without.levels is deep.levels


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        tiff(BOTH.astype(np.uint8), 1, extra=2),
        tiff(np.concatenate([GRAY] * 3, -1), 2),
        tiff(BOTH, 1, extra=1),
        tiff(BOTH, 1, extra=0),
        tiff(GRAY.astype(np.int16), 1),
        with_tag(tiff(BOTH, 1, extra=2), 284, 284, 2),
        tiff(BOTH, 1, extra=2)[:30],
    ],
    ids=[
        "empty", "png", "mark alone", "page beyond the end", "8 bits", "color", "associated alpha", "no alpha",
        "signed", "separate planes", "cut",
    ],
)  # fmt: skip
def test_any_other_file_is_left_alone(data: bytes):
    assert relabel_gray(io.BytesIO(data)) is None

"""Read 16-bit gray TIFF files of layouts that Pillow does not open: with alpha, and big-endian where zero is white.

Their first page is relabeled in memory as a plain gray one, which differs only in the header: a pixel of gray and
alpha becomes two pixels of gray. See https://github.com/python-pillow/Pillow/issues/1602. Can go when Pillow's table
of layouts has these: https://github.com/python-pillow/Pillow/blob/13.0.0/src/PIL/TiffImagePlugin.py#L160
"""

import io
import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from qwenvl.data.media.deep_images import DeepPixels, full_value

TIFF_MARKS = (b"II*\0", b"MM\0*")
_WIDTH, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANES, _PREDICTOR = 256, 258, 262, 274, 277, 284, 317
_TILE_WIDTH, _EXTRA, _FORMAT = 322, 338, 339
# TargetPrinter, a text that no reader needs. It replaces ExtraSamples and keeps the tags in order.
_TARGET_PRINTER = 337
_SHORT, _LONG, _TEXT = 3, 4, 2
_MAX_ENTRIES = 512


@dataclass(frozen=True)
class GrayLayout:
    """The properties that the header of the relabeled file no longer has."""

    white_is_zero: bool
    has_alpha: bool

    def restore(self, deep: DeepPixels) -> DeepPixels:
        """Return the pixels as the file means them, from those of the relabeled file."""
        if not self.has_alpha:
            return replace(deep, white_is_zero=self.white_is_zero)
        height, width = deep.levels.shape
        samples = deep.levels.reshape(height, width // 2, 2)
        opacity = samples[..., 1].astype(np.float32) / full_value(samples)
        return DeepPixels(samples[..., 0], opacity, deep.bits, self.white_is_zero)


def relabel_gray(file: BinaryIO) -> tuple[BinaryIO, GrayLayout] | None:
    """Return a file that Pillow opens and what its header leaves out; None for all but the layouts named above."""
    file.seek(0)
    data = bytearray(file.read())
    if bytes(data[:4]) not in TIFF_MARKS:
        return None
    order = "<" if data[:2] == b"II" else ">"
    try:
        entries = _entries(data, order)
    except struct.error:
        return None
    first = {tag: values[0] for tag, (_, _, _, values) in entries.items() if values}
    samples, photometric = first.get(_SAMPLES, 1), first.get(_PHOTOMETRIC)
    bits = entries.get(_BITS, (0, 0, 0, ()))[3]
    is_plain = _TILE_WIDTH not in first and first.get(_FORMAT, 1) == 1 and photometric in (0, 1)
    if not is_plain or bits != (16,) * samples or samples not in (1, 2):
        return None
    if samples == 2:
        if any(first.get(tag, 1) != 1 for tag in (_ORIENTATION, _PLANES, _PREDICTOR)) or first.get(_EXTRA) != 2:
            return None
        for tag, count in ((_BITS, 1), (_SAMPLES, 1), (_FORMAT, 1)):
            if tag in entries:
                _write(data, order, entries[tag], tag, count, 16 if tag == _BITS else 1)
        _write(data, order, entries[_WIDTH], _WIDTH, 1, first[_WIDTH] * 2)
        start = entries[_EXTRA][0]
        data[start : start + 12] = struct.pack(f"{order}HHI4s", _TARGET_PRINTER, _TEXT, 1, b"")
    _write(data, order, entries[_PHOTOMETRIC], _PHOTOMETRIC, 1, 1)
    return io.BytesIO(bytes(data)), GrayLayout(photometric == 0, samples == 2)


_Entry = tuple[int, int, int, tuple[int, ...]]


def _entries(data: bytes, order: str) -> dict[int, _Entry]:
    """Return (start, type, count, values) by tag of the first page's entries.

    Values are those of whole numbers that fit into the entry itself.
    """
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (number,) = struct.unpack_from(order + "H", data, offset)
    entries = {}
    for index in range(min(number, _MAX_ENTRIES)):
        start = offset + 2 + 12 * index
        tag, kind, count = struct.unpack_from(order + "HHI", data, start)
        letter = {_SHORT: "H", _LONG: "I"}.get(kind)
        fits = letter is not None and 0 < count <= (2 if kind == _SHORT else 1)
        values = struct.unpack_from(f"{order}{count}{letter}", data, start + 8) if fits else ()
        entries[tag] = (start, kind, count, values)
    return entries


def _write(data: bytearray, order: str, entry: _Entry, tag: int, count: int, value: int) -> None:
    """Replace one entry of the first page."""
    start, kind, _, _ = entry
    packed = struct.pack(order + ("H" if kind == _SHORT else "I"), value).ljust(4, b"\0")
    data[start : start + 12] = struct.pack(order + "HHI", tag, kind, count) + packed

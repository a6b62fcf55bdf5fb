"""Read a DICOM file, the header alone or the pixels as they are meant to be seen, with pydicom (extra `medical`)."""

import io
import zlib
from types import ModuleType
from typing import Any

import numpy as np

from qwenvl.data.media.files import most_bytes
from qwenvl.data.media.gray import MEDICAL_EXTRA, GrayRange, dicom_to_uint8
from qwenvl.errors import UserError

_PREAMBLE = 128
HEAD_BYTES = _PREAMBLE + 4
PIXEL_LIMIT_REMEDY = "make it smaller, or allow it with --max_image_megapixels"
_CHUNK = 1 << 20
_MOST_SAMPLES, _MOST_BITS = 4, 64


def is_dicom(path: str, head: bytes) -> bool:
    """Tell from the first `HEAD_BYTES` bytes, or from the name, whether a file is DICOM."""
    return head[_PREAMBLE:HEAD_BYTES] == b"DICM" or path.lower().endswith((".dcm", ".dicom"))


def dicom_size(path: str, max_pixels: int) -> tuple[int, int]:
    """Return (height, width) from the header; raises `UserError` without pydicom and `ValueError` without pixels.

    A file that was deflated as a whole is inflated for it, if it gives no more than `max_pixels` pixels.
    """
    dataset = _read(path, max_pixels, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    return _size(dataset)


def dicom_pixels(path: str, max_pixels: int, gray_range: GrayRange, frame: int | None = 0) -> np.ndarray:
    """Return one frame as a viewer shows it: gray (H, W) or color (H, W, 3), uint8; None is the only frame.

    Gray goes through the modality LUT (or slope and intercept), then the first VOI LUT or window, and MONOCHROME1 is
    turned over: the order of DICOM PS3.4 annex N.2, of which `pixel_array` does nothing. Without a window the levels
    are spread from the darkest to the brightest. Raises `UserError` without pydicom and for more than `max_pixels`
    pixels, `ValueError` for a damaged file.
    """
    dataset = _read(path, max_pixels)
    try:
        height, width = _size(dataset) if "Rows" in dataset else (0, 0)
        samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    # A value is only converted when it is asked for, and damaged ones answer with nearly anything.
    except Exception as error:
        raise ValueError(f"damaged DICOM header: {error}") from error
    check_pixel_count(height, width, max_pixels)
    if samples > _MOST_SAMPLES or bits > _MOST_BITS:
        raise ValueError(f"damaged DICOM header: {samples} samples of {bits} bits a pixel")
    try:
        return dicom_to_uint8(dataset, gray_range, frame)
    except UserError as error:
        raise ValueError(str(error)) from error


def check_pixel_count(height: int, width: int, max_pixels: int) -> None:
    """Raise `UserError` for more pixels than allowed."""
    if height * width > max_pixels:
        raise UserError(f"{width} x {height} pixels are more than the limit of {max_pixels}: {PIXEL_LIMIT_REMEDY}")


def _size(dataset: Any) -> tuple[int, int]:
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise ValueError("it is a DICOM file without pixels")
    return int(rows), int(columns)


def _read(path: str, max_pixels: int, **options: Any) -> Any:
    pydicom = _pydicom(path)
    with _InflationGuard(path, most_bytes(max_pixels)) as file:
        try:
            return pydicom.dcmread(file, **options)
        except pydicom.errors.InvalidDicomError:
            raise ValueError("no DICOM file: the mark DICM is missing at byte 128") from None


class _InflationGuard(io.BufferedReader):
    """A file of which the rest is handed out only if it does not inflate to more than `max_bytes`.

    A dataset of Deflated Explicit VR Little Endian is inflated whole, whatever comes of it
    (https://github.com/pydicom/pydicom/blob/v3.0.2/src/pydicom/filereader.py#L898); everything else is read in pieces
    of a given size. Can go when pydicom bounds it.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        super().__init__(io.FileIO(path))
        self._max_bytes = max_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or the rest; raises `ValueError` for a rest that inflates to too much."""
        data = super().read(size)
        if size is None or size < 0:
            self._check_inflated(data)
        return data

    def _check_inflated(self, data: bytes) -> None:
        stream, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        try:
            while data and not stream.eof:
                total += len(stream.decompress(data, _CHUNK))
                data = stream.unconsumed_tail
                if total > self._max_bytes:
                    raise ValueError(f"its deflated data grow to more than {self._max_bytes:,} bytes")
        # Not deflated, or damaged: pydicom says so.
        except zlib.error:
            return


def _pydicom(path: str) -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"reading DICOM needs pydicom: {MEDICAL_EXTRA}", path=path) from None
    return pydicom

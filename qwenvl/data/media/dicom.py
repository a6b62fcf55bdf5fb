"""Read the size or the rendered pixels of a DICOM file with pydicom (extra `medical`)."""

import io
import zlib
from types import ModuleType
from typing import Any

import numpy as np

from qwenvl.data.media.files import max_file_bytes
from qwenvl.data.media.gray import MEDICAL_EXTRA, GrayRange, dicom_to_uint8
from qwenvl.errors import UserError

_PREAMBLE = 128
HEAD_BYTES = _PREAMBLE + 4
PIXEL_LIMIT_REMEDY = "make it smaller, or allow it with --max_image_megapixels"
_CHUNK = 1 << 20
_MAX_SAMPLES, _MAX_BITS = 4, 64


def is_dicom(path: str, head: bytes) -> bool:
    """Return whether a file is DICOM, by its first `HEAD_BYTES` bytes or its name."""
    return head[_PREAMBLE:HEAD_BYTES] == b"DICM" or path.lower().endswith((".dcm", ".dicom"))


def dicom_size(path: str, max_pixels: int) -> tuple[int, int]:
    """Return (height, width) from the header; raises `UserError` without pydicom and `ValueError` without pixels.

    A file that is deflated as a whole is inflated for that, up to the bytes of `max_pixels` pixels.
    """
    dataset = _read(path, max_pixels, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    return _size(dataset)


def dicom_pixels(path: str, max_pixels: int, gray_range: GrayRange, frame: int | None = 0) -> np.ndarray:
    """Return one frame as a viewer shows it: gray (H, W) or color (H, W, 3), uint8; `frame` None is the only one.

    Gray levels go through the modality LUT (or slope and intercept), then the first VOI LUT or window, and MONOCHROME1
    is inverted: the order of DICOM PS3.4 annex N.2, of which `pixel_array` applies nothing. Without a window the levels
    are scaled from the smallest to the largest. Raises `UserError` without pydicom and for more than `max_pixels`
    pixels, `ValueError` for a damaged file.
    """
    dataset = _read(path, max_pixels)
    try:
        height, width = _size(dataset) if "Rows" in dataset else (0, 0)
        samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    # pydicom converts a value when it is first used, and raises nearly anything for damaged ones.
    except Exception as error:
        raise ValueError(f"damaged DICOM header: {error}") from error
    check_pixel_count(height, width, max_pixels)
    if samples > _MAX_SAMPLES or bits > _MAX_BITS:
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
        raise ValueError("a DICOM file without pixels")
    return int(rows), int(columns)


def _read(path: str, max_pixels: int, **options: Any) -> Any:
    pydicom = _pydicom(path)
    with _InflationGuard(path, max_file_bytes(max_pixels)) as file:
        try:
            return pydicom.dcmread(file, **options)
        except pydicom.errors.InvalidDicomError:
            raise ValueError("not a DICOM file: the mark DICM is missing at byte 128") from None


class _InflationGuard(io.BufferedReader):
    """A file whose rest can only be read if it does not inflate to more than `max_bytes`.

    pydicom inflates a dataset of Deflated Explicit VR Little Endian without a limit, and reads everything else in
    pieces of a given size. Can go when it has a limit:
    https://github.com/pydicom/pydicom/blob/v3.0.2/src/pydicom/filereader.py#L902
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
        # Not deflated, or damaged: pydicom reports it.
        except zlib.error:
            return


def _pydicom(path: str) -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"reading DICOM needs pydicom: {MEDICAL_EXTRA}", path=path) from None
    return pydicom

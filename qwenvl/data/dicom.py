"""Owns the pixels of a DICOM file as they are meant to be seen, read with pydicom (extra `medical`)."""

from types import ModuleType

import numpy as np

from qwenvl.data.grayscale import MEDICAL_EXTRA, GreyRange, dicom_to_uint8
from qwenvl.errors import UserError

_PREAMBLE = 128
HEAD_BYTES = _PREAMBLE + 4


def is_dicom(path: str, head: bytes) -> bool:
    """Tell from the first `HEAD_BYTES` bytes, or from the name, whether a file is DICOM."""
    return head[_PREAMBLE:HEAD_BYTES] == b"DICM" or path.lower().endswith((".dcm", ".dicom"))


def dicom_size(path: str) -> tuple[int, int]:
    """Return (height, width) from the header; raises `UserError` without pydicom and `ValueError` without pixels."""
    dataset = _pydicom(path).dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ValueError("it is a DICOM file without pixels")
    return int(dataset.Rows), int(dataset.Columns)


def dicom_pixels(path: str) -> np.ndarray:
    """Return the first frame as a viewer shows it: grey (H, W) or colour (H, W, 3), uint8.

    Grey goes through the modality LUT (or slope and intercept), then the first VOI LUT or window, and MONOCHROME1 is
    turned over: the order of DICOM PS3.4 annex N.2, of which `pixel_array` does nothing. Without a window the levels
    are spread from the darkest to the brightest. Raises `UserError` without pydicom, `ValueError` for a damaged file.
    """
    dataset = _pydicom(path).dcmread(path)
    try:
        return dicom_to_uint8(dataset, GreyRange("window"), frame=0)
    except UserError as error:
        raise ValueError(str(error)) from error


def _pydicom(path: str) -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"{path}: reading DICOM needs pydicom: {MEDICAL_EXTRA}") from None
    return pydicom

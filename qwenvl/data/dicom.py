"""Owns the pixels of a DICOM file as they are meant to be seen, read with pydicom (extra `medical`)."""

from types import ModuleType

import numpy as np

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
    """Return the first frame: grey values (H, W) of any range with high meaning white, or 8-bit colour (H, W, 3).

    Grey goes through the modality LUT (or slope and intercept), then the first VOI LUT or window, and MONOCHROME1 is
    turned over: the order of DICOM PS3.4 annex N.2, of which `pixel_array` does nothing.
    Raises `UserError` without pydicom; whatever pydicom raises where the file is damaged or a decoder is missing.
    """
    pydicom = _pydicom(path)
    from pydicom import pixels

    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ValueError("it is a DICOM file without pixels")
    try:
        values = pixels.pixel_array(dataset, index=0)
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise ValueError(f"no decoder for its {syntax} pixels; the extra `medical` brings more: {error}") from error
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, dataset)
    if values.ndim == 3:
        return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
    values = pixels.apply_voi_lut(pixels.apply_modality_lut(values, dataset), dataset)
    return values.max() - values if kind == "MONOCHROME1" else values


def _pydicom(path: str) -> ModuleType:
    try:
        import pydicom
    except ImportError:
        raise UserError(f"{path}: reading DICOM needs pydicom: pip install 'qwenvl-finetune[medical]'") from None
    return pydicom

"""DICOM datasets made in code for tests."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, RLELossless, generate_uid


def make_dicom(pixels: np.ndarray, bits: int | None = None, **tags: Any) -> Dataset:
    """Return a dataset with `pixels` (H, W) or (frames, H, W), uint8, uint16 or int16; `tags` are set on top."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "DX"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def make_lut(table: list[int], first: int, depth: int) -> Dataset:
    """Return one item of a LUT sequence: `table` holds the outputs from input `first` on, of `depth` bits."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table), first, depth])
    item.add_new("LUTData", "US", table)
    return item


def rle_dicom(path: Path, runs: int = 32) -> str:
    """Write a run-length encoded DICOM of 64 x 64 pixels; with more than 32 runs its decoder, in Rust, panics."""
    dataset = make_dicom(np.zeros((64, 64), np.uint16), 12)
    dataset.compress(RLELossless)
    segments = [bytes([0x81, 0]) * runs, bytes([0x81, 0]) * 32]
    header = struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13)
    dataset.PixelData = encapsulate([header + b"".join(segments)])
    dataset.save_as(path, enforce_file_format=True)
    return str(path)

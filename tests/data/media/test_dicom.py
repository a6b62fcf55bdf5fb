"""Tests of reading DICOM files: the steps from stored values to what is to be seen, and files without pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest

from qwenvl.data.media.images import ImageError, image_size, load_image
from qwenvl.errors import UserError

READERS = pytest.mark.parametrize("read", [load_image, image_size])
RAMP = np.linspace(0, 1, 12).reshape(3, 4)  # (H, W), smallest value first and largest last
GRAY = np.rint(RAMP * 255).astype(np.uint8)
STORED = np.rint(RAMP * 4095).astype(np.uint16)


def pixels(path: Path) -> np.ndarray:
    """Return the loaded image as (H, W, 3), after checking that its size is the header's."""
    image = load_image(str(path))
    assert image_size(str(path)) == (image.height, image.width)
    return np.asarray(image)


def assert_gray(path: Path, expected: np.ndarray) -> None:
    """Check that all three channels hold `expected` (H, W)."""
    np.testing.assert_array_equal(pixels(path), np.stack([expected] * 3, axis=2))


def write_dicom(path: Path, stored: np.ndarray | None, **elements) -> None:
    """Write (H, W) or (H, W, 3) stored values as an uncompressed DICOM file with further elements."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    if stored is not None:
        bits = stored.dtype.itemsize * 8
        dataset.Rows, dataset.Columns = stored.shape[:2]
        dataset.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        if stored.ndim == 3:
            dataset.PlanarConfiguration = 0
        dataset.PixelData = stored.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def test_dicom_with_high_values_white_is_spread(tmp_path: Path):
    write_dicom(tmp_path / "x.dcm", STORED, BitsStored=12, HighBit=11)
    assert_gray(tmp_path / "x.dcm", GRAY)


def test_dicom_is_known_by_its_content_too(tmp_path: Path):
    write_dicom(tmp_path / "no_suffix", STORED)
    assert_gray(tmp_path / "no_suffix", GRAY)


def test_monochrome1_is_turned_over(tmp_path: Path):
    write_dicom(tmp_path / "x.dcm", STORED, PhotometricInterpretation="MONOCHROME1")
    assert_gray(tmp_path / "x.dcm", 255 - GRAY)


def test_the_dicom_window_clips_after_the_rescale_slope(tmp_path: Path):
    window = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "1000", "WindowWidth": "2001"}
    write_dicom(tmp_path / "x.dcm", STORED, **window)
    rescaled = STORED * 2.0 - 1000
    expected = np.clip(rescaled / 2000, 0, 1) * 255
    np.testing.assert_allclose(pixels(tmp_path / "x.dcm")[..., 0], expected, atol=1)


def test_the_modality_lut_and_the_voi_lut_are_applied_in_this_order(tmp_path: Path):
    pydicom = pytest.importorskip("pydicom")

    def table(values: list[int]):
        item = pydicom.Dataset()
        item.LUTDescriptor, item.ModalityLUTType = [len(values), 0, 16], "US"
        item.LUTData = np.array(values, "<u2").tobytes()
        return pydicom.Sequence([item])

    stored = np.array([[0, 1, 2, 3]], np.uint8)
    luts = {"ModalityLUTSequence": table([3, 2, 1, 0]), "VOILUTSequence": table([0, 6425, 57825, 65535])}
    write_dicom(tmp_path / "x.dcm", stored, **luts)
    assert_gray(tmp_path / "x.dcm", np.array([[255, 225, 25, 0]], np.uint8))


def test_signed_dicom_values_are_read_as_signed(tmp_path: Path):
    write_dicom(tmp_path / "x.dcm", (STORED.astype(np.int16) - 2000))
    assert_gray(tmp_path / "x.dcm", GRAY)


def test_colour_dicom_is_left_as_it_is_and_of_several_frames_the_first_is_read(tmp_path: Path):
    colour = np.random.default_rng(0).integers(0, 200, (3, 4, 3)).astype(np.uint8)
    write_dicom(tmp_path / "colour.dcm", colour)
    np.testing.assert_array_equal(pixels(tmp_path / "colour.dcm"), colour)
    frames = np.stack([STORED, STORED[::-1]])
    write_dicom(tmp_path / "two.dcm", STORED, NumberOfFrames=2, PixelData=frames.tobytes())
    assert_gray(tmp_path / "two.dcm", GRAY)


@READERS
def test_dicom_without_pixels_is_refused(tmp_path: Path, read):
    write_dicom(tmp_path / "x.dcm", None)
    with pytest.raises(ImageError, match="x.dcm: cannot read the image .a DICOM (file|object) without pixels"):
        read(str(tmp_path / "x.dcm"))


def test_dicom_of_which_pixels_are_missing_is_refused(tmp_path: Path):
    write_dicom(tmp_path / "x.dcm", STORED, PixelData=STORED.tobytes()[:10])
    with pytest.raises(ImageError, match="x.dcm: cannot read the image"):
        load_image(str(tmp_path / "x.dcm"))


@READERS
def test_dicom_over_the_pixel_limit_is_refused(tmp_path: Path, read):
    write_dicom(tmp_path / "x.dcm", STORED)
    with pytest.raises(ImageError, match="4 x 3 pixels are more than the limit of 11"):
        read(str(tmp_path / "x.dcm"), 11)


@READERS
def test_without_pydicom_the_error_names_the_extra_to_install(tmp_path: Path, monkeypatch, read):
    (tmp_path / "scan").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"scan: reading DICOM needs pydicom: pip install .*\[medical\]"):
        read(str(tmp_path / "scan"))

"""Images of many kinds for tests: 16-bit, float, 8-bit, color and DICOM."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.dicom_files import make_dicom

# 60 rows of 40 levels, from black at the top left to white at the bottom right.
LEVELS = (np.arange(60 * 40, dtype=np.uint16) * 1.7).astype(np.uint16).reshape(60, 40)


def write_originals(folder: Path) -> Path:
    """Write one readable image of each kind, 40 wide and 60 high, and a text file; return the folder."""
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(LEVELS).save(folder / "gray16.png")
    Image.fromarray(LEVELS).save(folder / "deep" / "gray16.tif")
    Image.fromarray((LEVELS / 4096).astype(np.float32)).save(folder / "deep" / "float.tiff")
    Image.fromarray((LEVELS // 16).astype(np.uint8)).save(folder / "gray8.jpg", quality=95)
    Image.new("RGB", (40, 60), "red").save(folder / "color.png")
    make_dicom(LEVELS, 12).save_as(folder / "deep" / "er" / "gray.dcm", enforce_file_format=True)
    make_dicom(LEVELS, 12).save_as(folder / "deep" / "er" / "1.2.840.7", enforce_file_format=True)
    (folder / "notes.txt").write_text("not an image")
    return folder


def write_frames(path: Path) -> None:
    """Write a TIFF with two frames, the second turned upside down."""
    pages = [Image.fromarray(LEVELS), Image.fromarray(LEVELS[::-1].copy())]
    pages[0].save(path, save_all=True, append_images=pages[1:])

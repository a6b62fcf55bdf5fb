"""Tests of the conversion of one image."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwenvl.data.media.gray import GrayRange
from qwenvl.errors import UserError
from qwenvl.medical import convert_image as module
from qwenvl.medical.convert_image import ImageOptions, ImageTask, convert_image
from tests.data.dicom_files import make_dicom
from tests.medical.deep_images import LEVELS, write_frames


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Return a 16-bit PNG, 40 wide and 60 high."""
    Image.fromarray(LEVELS).save(tmp_path / "deep.png")
    return tmp_path / "deep.png"


def _convert(source: Path, suffix: str = ".png", **options: Any) -> Image.Image:
    target = source.parent / "out" / f"converted{suffix}"
    assert convert_image(ImageTask(str(source), str(target), ImageOptions(**options))) is None
    return Image.open(target)


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        (None, "shortest", (40, 60)),
        (20, "shortest", (20, 30)),
        (30, "longest", (20, 30)),
        (500, "shortest", (40, 60)),
        (40, "shortest", (40, 60)),
        (1, "longest", (1, 1)),
    ],
)
def test_an_image_shrinks_to_the_size_with_its_aspect_and_never_grows(deep: Path, size, fit: str, expected):
    assert _convert(deep, size=size, fit=fit).size == expected


@pytest.mark.parametrize(
    ("gray_range", "white"),
    [
        (GrayRange("minmax"), 255),
        (GrayRange("bits"), 16),
        (GrayRange("bits", bits=12), 254),
        (GrayRange("percentile", percentiles=(0, 50)), 255),
        (GrayRange("window", window=(4079, 4080)), 128),
    ],
)
def test_the_range_decides_the_gray_levels(deep: Path, gray_range: GrayRange, white: int):
    image = np.asarray(_convert(deep, gray_range=gray_range))
    assert abs(int(image[-1, -1]) - white) <= 1
    if gray_range.kind == "percentile":
        assert (image == 255).mean() == pytest.approx(0.5, abs=0.01)


def test_jpeg_output_has_the_quality_asked_for(deep: Path):
    coarse = _convert(deep, "-30.jpg", format="jpg", quality=30)
    fine = _convert(deep, "-95.jpg", format="jpg")
    assert coarse.format == fine.format == "JPEG"
    assert Path(coarse.filename).stat().st_size < Path(fine.filename).stat().st_size


def test_a_photo_is_turned_upright(tmp_path: Path):
    image = Image.new("L", (40, 60))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert _convert(tmp_path / "turned.jpg").size == (60, 40)


def test_the_frame_asked_for_is_taken(tmp_path: Path):
    write_frames(tmp_path / "frames.tif")
    make_dicom(np.stack([LEVELS, LEVELS[::-1]]), 12).save_as(tmp_path / "frames.dcm", enforce_file_format=True)
    for name in ("frames.tif", "frames.dcm"):
        image = np.asarray(_convert(tmp_path / name, frame=1))
        assert image[0, 0] > image[-1, -1]


def _truncated(path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _bomb(path: Path) -> None:
    """Write a PNG of a few bytes whose header says 30,000 x 30,000 pixels."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))


def _no_pixels(path: Path) -> None:
    dataset = make_dicom(LEVELS, 12)
    del dataset.PixelData
    dataset.save_as(path, enforce_file_format=True)


def _huge_dicom(path: Path) -> None:
    make_dicom(LEVELS, 12, Rows=30_000, Columns=30_000).save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "the image file is empty (0 bytes)"),
        ("cut.jpg", _truncated, "truncated"),
        ("text.png", lambda path: path.write_text("not an image"), "not an image of a known format"),
        ("bomb.png", _bomb, "pixels"),
        ("frames.tif", write_frames, "2 frames in one file; pick one with --frame 0 to 1"),
        ("none.dcm", _no_pixels, "without pixels"),
        ("huge.dcm", _huge_dicom, "30000 x 30000 pixels are more than the limit"),
        ("text.dcm", lambda path: path.write_text("not an image" * 50), "the mark DICM is missing"),
        ("cut.dcm", lambda path: path.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40), "DICOM"),
        ("link.png", lambda path: path.symlink_to("not there"), "a link to not there"),
        ("pipe.png", os.mkfifo, "a named pipe (FIFO), expected one image file; correct the path"),
    ],
)
def test_the_reason_of_a_failure_is_one_line_without_the_path(tmp_path: Path, name: str, make, reason: str):
    make(tmp_path / name)
    target = tmp_path / "out" / "a.png"
    failed = convert_image(ImageTask(str(tmp_path / name), str(target), ImageOptions()))
    assert reason in failed and "\n" not in failed and str(tmp_path) not in failed
    assert not target.exists()


def test_a_limit_of_pixels_refuses_larger_images_only(tmp_path: Path):
    Image.new("L", (1100, 1000)).save(tmp_path / "large.png")
    task = ImageTask(str(tmp_path / "large.png"), str(tmp_path / "a.png"), ImageOptions(max_image_megapixels=1))
    reason = convert_image(task)
    assert "1100 x 1000 pixels are more than the limit of 1048576" in reason and "--max_image_megapixels" in reason
    assert _convert(tmp_path / "large.png", max_image_megapixels=2).size == (1100, 1000)


def test_a_full_disk_is_the_users_error_and_leaves_no_file(deep: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    target = deep.parent / "x" / "a.png"
    with pytest.raises(UserError, match="a.png: cannot write it .No space left on device"):
        convert_image(ImageTask(str(deep), str(target), ImageOptions()))
    assert list(target.parent.iterdir()) == []


def test_an_output_name_that_is_too_long_is_a_reason_and_no_error(deep: Path):
    reason = convert_image(ImageTask(str(deep), str(deep.parent / ("n" * 252 + ".png")), ImageOptions()))
    assert reason == "its name is too long for the disk of --out (256 bytes); shorten it"
    assert convert_image(ImageTask(str(deep), str(deep.parent / ("n" * 251 + ".png")), ImageOptions())) is None


def test_settings_hold_what_the_pixels_depend_on():
    settings = ImageOptions(GrayRange("percentile"), size=9, max_image_megapixels=1).settings()
    assert settings["kind"] == "percentile" and settings["size"] == 9 and settings["percentiles"] == [0.5, 99.5]
    assert settings == ImageOptions(GrayRange("percentile"), size=9, max_image_megapixels=2).settings()
    assert settings != ImageOptions(GrayRange("percentile"), size=9, frame=0).settings()

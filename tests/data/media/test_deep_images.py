"""Tests of images deeper than 8 bits: every layout, written byte by byte, against the values that were written."""

from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from qwenvl.data.media.gray import GrayRange
from qwenvl.data.media.images import ImageError, image_size, load_image, read_image
from qwenvl.medical.convert_image import ImageOptions, ImageTask, convert_image
from tests.data.deep_files import png16, tiff

RANDOM = np.random.default_rng(0)
# (H, W, channels) of 12 bits in 16: red, green, blue, alpha; and an opaque one beside it.
SAMPLES = RANDOM.integers(100, 4096, (13, 9, 4)).astype(np.uint16)
GRAY, COLOR, ALPHA = SAMPLES[..., :1], SAMPLES[..., :3], SAMPLES[..., 3:]
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
DEFLATED = pytest.mark.parametrize("deflated", [False, True])


def spread(levels: np.ndarray, alpha: np.ndarray | None = None, full: int = 4095) -> np.ndarray:
    """Return what is to be seen, (H, W, 3): the smallest level black, the largest white, white behind alpha."""
    levels = levels.astype(float)
    shown = np.rint((levels - levels.min()) / (levels.max() - levels.min()) * 255)
    if alpha is not None:
        shown = np.rint(255 - alpha / full * (255 - shown))
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def assert_seen(tmp_path: Path, data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    """Check the image in training, and that `prepare_images` makes the same one."""
    source, target = tmp_path / "deep", tmp_path / "out.png"
    source.write_bytes(data)
    seen = np.asarray(load_image(str(source))).astype(int)
    assert np.abs(seen - expected).max() <= tolerance
    assert convert_image(ImageTask(str(source), str(target), ImageOptions())) is None
    np.testing.assert_array_equal(np.asarray(load_image(str(target))), seen)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_of_every_color_type_keeps_all_its_bits(tmp_path: Path, channels: int, interlaced: bool):
    samples = SAMPLES[..., :channels]
    levels = samples[..., : 1 if channels < 3 else 3]
    assert_seen(tmp_path, png16(samples, interlaced), spread(levels, None if channels % 2 else samples[..., -1:]))
    # torchvision decodes PNG with libpng alone: an independent reading of the file that was written.
    decoded = torchvision.io.decode_image(str(tmp_path / "deep"), torchvision.io.ImageReadMode.UNCHANGED)
    np.testing.assert_array_equal(decoded.permute(1, 2, 0), samples)


def test_an_alpha_of_16_bits_counts_against_its_own_full_value(tmp_path: Path):
    opaque = np.full_like(GRAY, 65535)
    assert_seen(tmp_path, png16(np.concatenate([GRAY, opaque], -1)), spread(GRAY))
    half = np.full_like(GRAY, 32768)
    assert_seen(tmp_path, png16(np.concatenate([COLOR, half], -1)), spread(COLOR, half, 65535))


def test_hidden_values_do_not_widen_the_range(tmp_path: Path):
    gray, alpha = GRAY.copy(), np.full_like(GRAY, 65535)
    gray[0, 0], alpha[0, 0] = 65535, 0
    expected = spread(np.where(alpha > 0, gray, GRAY.min())).copy()
    expected[0, 0] = 255
    assert_seen(tmp_path, png16(np.concatenate([gray, alpha], -1)), expected)


@pytest.mark.parametrize("samples", [GRAY, COLOR])
def test_a_transparent_color_of_16_bits_is_matched_in_all_its_bits(tmp_path: Path, samples: np.ndarray):
    key = samples[3, 4]
    expected = np.where((samples == key).all(-1, keepdims=True), 255, spread(samples))
    assert_seen(tmp_path, png16(samples, key=tuple(int(value) for value in key)), expected)


@ORDERS
@DEFLATED
@pytest.mark.parametrize(
    ("levels", "photometric", "inverted"),
    [
        (GRAY, 1, False),
        ((GRAY.astype(int) - 2000).astype(np.int16), 1, False),
        ((GRAY * 100_000.0 - 2e8).astype(np.int32), 1, False),
        ((GRAY / 4096.0).astype(np.float32), 1, False),
        ((GRAY / 4096.0).astype(np.float32), 0, True),
        (COLOR, 2, False),
    ],
    ids=["uint16", "int16", "int32", "float", "white-is-zero float", "RGB"],
)
def test_tiff_of_every_kind_and_byte_order(tmp_path: Path, order, deflated, levels, photometric, inverted):
    expected = spread(levels)
    data = tiff(levels, photometric, order, deflated=deflated)
    assert_seen(tmp_path, data, 255 - expected if inverted else expected)


@DEFLATED
def test_white_is_zero_and_unsigned_32_bits_are_known_from_the_file(tmp_path: Path, deflated: bool):
    assert_seen(tmp_path, tiff(GRAY, 0, deflated=deflated), 255 - spread(GRAY))
    assert_seen(tmp_path, tiff(GRAY.astype(np.uint32) * 1_000_000, 1, deflated=deflated), spread(GRAY))


@ORDERS
@DEFLATED
@pytest.mark.parametrize("photometric", [0, 1])
def test_16_bit_gray_tiff_that_pillow_does_not_open(tmp_path: Path, order: str, deflated: bool, photometric: int):
    alpha = np.maximum(ALPHA, 2000)
    alone, both = GRAY, np.concatenate([GRAY, alpha], -1)
    expected = spread(GRAY) if photometric else 255 - spread(GRAY)
    assert_seen(tmp_path, tiff(alone, photometric, order, deflated=deflated), expected)
    data = tiff(both, photometric, order, deflated=deflated, extra=2)
    assert_seen(tmp_path, data, np.rint(255 - alpha / 4095 * (255 - expected)), tolerance=1)
    assert image_size(str(tmp_path / "deep")) == (13, 9)
    (tmp_path / "x.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError):
        load_image(str(tmp_path / "x.tif"))


@ORDERS
@DEFLATED
def test_tiff_with_alpha_free_or_multiplied_in_or_a_channel_without_meaning(tmp_path: Path, order, deflated: bool):
    alpha = np.maximum(ALPHA, 2000)
    kinds = {0: (COLOR, None), 2: (COLOR, alpha), 1: (np.rint(COLOR * (alpha / 4095)).astype(np.uint16), alpha)}
    for extra, (levels, shown_alpha) in kinds.items():
        data = tiff(np.concatenate([levels, alpha], -1), 2, order, deflated=deflated, extra=extra)
        assert_seen(tmp_path, data, spread(COLOR, shown_alpha), tolerance=1)


@ORDERS
def test_separate_color_planes_are_read_or_refused(tmp_path: Path, order: str):
    assert_seen(tmp_path, tiff(COLOR, 2, order, separate=True), spread(COLOR))
    (tmp_path / "x.tif").write_bytes(tiff(COLOR, 2, order, separate=True, deflated=True))
    with pytest.raises(ImageError, match="separate color planes; save it with interleaved channels"):
        load_image(str(tmp_path / "x.tif"))


def test_a_tiff_that_pillow_cannot_read_is_called_that(tmp_path: Path):
    (tmp_path / "x.tif").write_bytes(tiff(GRAY.astype(np.float64), 1))
    with pytest.raises(ImageError, match="x.tif: a TIFF of a layout that Pillow cannot read.*save it as PNG"):
        load_image(str(tmp_path / "x.tif"))


def test_a_range_holds_for_all_channels_of_color(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png16(COLOR))
    seen = np.asarray(read_image(str(tmp_path / "x.png"), GrayRange("bits", bits=12)))
    np.testing.assert_array_equal(seen, np.rint(COLOR / 4095 * 255))
    seen = np.asarray(read_image(str(tmp_path / "x.png"), GrayRange("window", window=(2000.5, 1001))))
    np.testing.assert_allclose(seen, np.clip((COLOR - 1500.0) / 1000, 0, 1) * 255, atol=1)


def test_a_deep_frame_is_picked_from_several(tmp_path: Path):
    pages = [Image.fromarray(page) for page in (GRAY[..., 0], GRAY[::-1, :, 0].copy())]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    second = np.asarray(read_image(str(tmp_path / "x.tif"), GrayRange(), frame=1))
    np.testing.assert_array_equal(second, spread(GRAY[::-1])[..., 0])
    for frame, reason in ((None, "2 frames in one file; pick one"), (2, "frame 2 is not there: the file has 2")):
        with pytest.raises(ImageError, match=reason):
            read_image(str(tmp_path / "x.tif"), GrayRange(), frame)

"""Tests of reading pictures: pixel values of every kind of file, sizes from headers, and damaged files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from qwenvl.data.media.images import ImageError, image_size, load_image

READERS = pytest.mark.parametrize("read", [load_image, image_size])
RAMP = np.linspace(0, 1, 12).reshape(3, 4)  # (H, W), smallest value first and largest last
GRAY = np.rint(RAMP * 255).astype(np.uint8)


def pixels(path: Path) -> np.ndarray:
    """Return the loaded picture as (H, W, 3), after checking that it is RGB and of the size that its header says."""
    picture = load_image(str(path))
    assert picture.mode == "RGB"
    assert image_size(str(path)) == (picture.height, picture.width)
    return np.asarray(picture)


def assert_gray(path: Path, expected: np.ndarray) -> None:
    """Check that all three channels hold `expected` (H, W)."""
    np.testing.assert_array_equal(pixels(path), np.repeat(expected[..., None], 3, axis=2))


# --- deep gray ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
@pytest.mark.parametrize(("low", "high"), [(0, 65535), (0, 4095), (0, 1023), (31768, 34768), (1, 5)])
def test_16_bit_values_are_spread_from_the_smallest_to_the_largest(tmp_path: Path, name: str, low: int, high: int):
    values = np.rint(low + RAMP * (high - low)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as written:
        assert written.mode == "I;16"
    assert_gray(tmp_path / name, np.rint((values - low) / np.float32(high - low) * 255).astype(np.uint8))


def test_a_12_bit_film_in_a_16_bit_file_keeps_its_contrast(tmp_path: Path):
    film = np.random.default_rng(0).integers(200, 4096, (32, 32)).astype(np.uint16)
    Image.fromarray(film).save(tmp_path / "film.png")
    seen = pixels(tmp_path / "film.png")[..., 0]
    assert (seen.min(), seen.max()) == (0, 255)
    assert np.corrcoef(seen.ravel(), film.ravel())[0, 1] > 0.9999


def test_32_bit_integers_with_negative_values_are_spread(tmp_path: Path):
    Image.fromarray(np.rint(-1000 + RAMP * 70000).astype(np.int32)).save(tmp_path / "x.tif")
    assert_gray(tmp_path / "x.tif", GRAY)


def test_big_endian_16_bit_tiff_is_spread(tmp_path: Path):
    Image.frombytes("I;16B", (4, 3), np.rint(RAMP * 4095).astype(">u2").tobytes()).save(tmp_path / "x.tif")
    assert_gray(tmp_path / "x.tif", GRAY)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1024, 3071), (1e-6, 2e-6), (-3e38, 3e38)])
def test_float_values_of_any_range_are_spread(tmp_path: Path, low: float, high: float):
    Image.fromarray((low + RAMP * (high - low)).astype(np.float32)).save(tmp_path / "x.tif")
    np.testing.assert_allclose(pixels(tmp_path / "x.tif")[..., 1], GRAY, atol=1)


def test_float_values_that_are_no_numbers_do_not_spoil_the_rest(tmp_path: Path):
    values = RAMP.astype(np.float32)
    values[0, 1], values[0, 2], values[0, 3] = np.nan, np.inf, -np.inf
    expected = GRAY.copy()
    expected[0, 1:] = 0, 255, 0
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert_gray(tmp_path / "x.tif", expected)


def test_a_deep_picture_of_one_value_is_black_and_one_of_no_value_is_refused(tmp_path: Path):
    Image.fromarray(np.full((3, 4), 900, np.uint16)).save(tmp_path / "flat.png")
    assert_gray(tmp_path / "flat.png", np.zeros((3, 4), np.uint8))
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="nan.tif: no pixel has a finite value"):
        load_image(str(tmp_path / "nan.tif"))


# --- 8 bits and fewer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp", "x.webp"])
def test_8_bit_gray_and_colour_are_left_as_they_are(tmp_path: Path, name: str):
    dark = (GRAY // 4)[..., None] + np.array([0, 1, 2], np.uint8)
    Image.fromarray(dark).save(tmp_path / name, lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path / name), dark)
    if name != "x.webp":
        Image.fromarray(GRAY // 4).save(tmp_path / name)
        assert_gray(tmp_path / name, GRAY // 4)


def test_1_bit_pictures_are_black_and_white(tmp_path: Path):
    Image.fromarray(GRAY > 127).save(tmp_path / "x.png")
    assert_gray(tmp_path / "x.png", np.where(GRAY > 127, 255, 0).astype(np.uint8))


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_palette_pictures_get_their_colours(tmp_path: Path, name: str):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / name)
    assert pixels(tmp_path / name).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk_is_converted(tmp_path: Path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "clear", "half", "solid", "shown"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255), [[255] * 3, [255, 127, 127], [255, 0, 0]]),
        ("LA", (0, 0), (0, 128), (0, 255), [[255] * 3, [127] * 3, [0] * 3]),
    ],
)
def test_transparent_parts_show_white(tmp_path: Path, mode: str, clear, half, solid, shown: list):
    picture = Image.new(mode, (3, 1))
    for place, colour in enumerate((clear, half, solid)):
        picture.putpixel((place, 0), colour)
    picture.save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").tolist() == [shown]


@pytest.mark.parametrize(("mode", "key"), [("P", 0), ("L", 0), ("RGB", (0, 0, 0))])
def test_a_transparent_colour_shows_white(tmp_path: Path, mode: str, key):
    Image.new(mode, (2, 2), 0).save(tmp_path / "x.png", transparency=key)
    assert pixels(tmp_path / "x.png")[0, 0].tolist() == [255, 255, 255]


def test_of_several_frames_the_first_is_read(tmp_path: Path):
    Image.new("L", (4, 3), 10).save(tmp_path / "x.tif", save_all=True, append_images=[Image.new("L", (9, 9), 90)])
    assert_gray(tmp_path / "x.tif", np.full((3, 4), 10, np.uint8))


# --- orientation -------------------------------------------------------------------------------------------------

UPRIGHT = np.zeros((16, 32), np.uint8)
UPRIGHT[:8, :16] = 255  # the corner tells all eight orientations apart, together with the size
UPRIGHT[:8, 16:] = 128
AS_STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif", "deep.png", "deep.tif"])
@pytest.mark.parametrize("orientation", AS_STORED)
def test_every_exif_orientation_is_turned_upright(tmp_path: Path, name: str, orientation: int):
    stored = np.ascontiguousarray(AS_STORED[orientation])
    picture = Image.fromarray(stored.astype(np.uint16) * 16 if name.startswith("deep") else stored)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / name, **({"lossless": True} if name == "x.webp" else {}), exif=exif)
    seen = pixels(tmp_path / name)[..., 0].astype(int)
    assert seen.shape == UPRIGHT.shape
    assert abs(seen - UPRIGHT).max() < 24  # JPEG rounds


def test_the_orientation_of_a_tiff_in_xmp_alone_agrees_with_its_size(tmp_path: Path):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    Image.fromarray(UPRIGHT).save(tmp_path / "x.tif", tiffinfo={700: xmp})
    assert pixels(tmp_path / "x.tif").shape == (32, 16, 3)


def test_a_broken_exif_block_leaves_the_picture_as_it_is(tmp_path: Path):
    Image.fromarray(UPRIGHT).save(tmp_path / "x.jpg", exif=b"Exif\0\0no tiff header")
    assert pixels(tmp_path / "x.jpg").shape == (16, 32, 3)


# --- headers, damage and limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.bmp"])
def test_the_size_needs_no_pixels(tmp_path: Path, name: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    if name != "x.tif":  # whose header may stand behind its pixels
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match=f"{name}: cannot read the image .*; replace or convert"):
            load_image(str(tmp_path / name))
    assert image_size(str(tmp_path / name)) == (64, 48)


@READERS
def test_files_that_are_no_images_are_named_with_the_reason(tmp_path: Path, read):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    reasons = {
        "missing.png": "no such image file",
        "empty.png": "the image file is empty",
        "text.jpg": "not an image of a known format",
        ".": "a folder, expected one image file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as error:
            read(str(tmp_path / name))
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)


def test_a_png_with_a_damaged_middle_is_refused(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match="cannot read the image"):
        load_image(str(tmp_path / "x.png"))


@READERS
def test_pictures_over_the_pixel_limit_are_refused_before_decoding(tmp_path: Path, monkeypatch, read):
    Image.new("1", (9000, 8000)).save(tmp_path / "bomb.png")
    limit_of_pillow = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="9000 x 8000 pixels are more than the limit of 67108864"):
            read(str(tmp_path / "bomb.png"))
    assert limit_of_pillow == Image.MAX_IMAGE_PIXELS


def test_an_image_at_the_pixel_limit_is_read_and_one_above_it_when_allowed(tmp_path: Path, monkeypatch):
    Image.fromarray(GRAY).save(tmp_path / "x.png")
    for limit in (12, 13):
        assert load_image(str(tmp_path / "x.png"), limit).size == (4, 3)
        assert image_size(str(tmp_path / "x.png"), limit) == (3, 4)
    # Pillow's own limit does not stand in the way of an allowed one.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert load_image(str(tmp_path / "x.png"), 12).size == (4, 3)
    with pytest.raises(ImageError, match="4 x 3 pixels are more than the limit of 11.*--max_image_megapixels"):
        load_image(str(tmp_path / "x.png"), 11)


@READERS
def test_an_image_far_over_the_limit_of_pillow_is_refused_with_the_way_to_allow_it(tmp_path: Path, monkeypatch, read):
    Image.fromarray(GRAY).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(ImageError, match="its pixels are more than the limit of 5: .*--max_image_megapixels"):
        read(str(tmp_path / "x.png"), 5)

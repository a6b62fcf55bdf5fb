"""Tests of reading images at the size that the processor resizes them to: the pixels of the plain way, and how near."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from transformers import Qwen2VLImageProcessor

from qwenvl.data.media.image_reader import ImageReader, resizing_of
from qwenvl.data.media.images import ImageError, load_image

SIZE = (1501, 1103)  # (W, H), both odd, so that no reduced scale is exact


@pytest.fixture
def image_processor() -> Qwen2VLImageProcessor:
    """Return Qwen3-VL's image processor with limits that make images of `SIZE` less than half as long."""
    size = {"shortest_edge": 64 * 64, "longest_edge": 320 * 320}
    return Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=size)


def xray(size: tuple[int, int] = SIZE, channels: int = 1) -> Image.Image:
    """Return smooth shadows with some grain, a dark border and sharp bright letters, as an X-ray has them."""
    random = np.random.default_rng(0)
    width, height = size
    shadows = Image.fromarray(random.integers(0, 255, (9, 9), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    levels = np.repeat(np.asarray(shadows, dtype=np.int16)[..., None], channels, axis=2)
    levels = levels + random.integers(-4, 5, levels.shape) + np.arange(channels) * 20
    levels[: height // 20] = levels[:, : width // 20] = 0
    levels[height // 10 : height // 8, width // 2 :: width // 40] = 255
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8).squeeze())


def plain(image_processor: Qwen2VLImageProcessor, path: Path) -> torch.Tensor:
    """Return the processor's rows for the whole image in levels of 8 bits, (patches, values)."""
    made = image_processor([load_image(str(path))], do_rescale=False, do_normalize=False, return_tensors="pt")
    return made["pixel_values"]


def read(image_processor: Qwen2VLImageProcessor, path: Path) -> torch.Tensor:
    """Return the processor's rows for the image as the reader gives it."""
    pixels = ImageReader(image_processor)(str(path))
    assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
    return image_processor([pixels], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("gray.png", xray(), {}),
        ("color.png", xray(channels=3), {}),
        ("color.webp", xray(channels=3), {"lossless": True}),
        ("deep.png", Image.fromarray(np.asarray(xray()).astype(np.uint16) * 11), {}),
        ("deep.tif", Image.fromarray(np.asarray(xray()).astype(np.uint16) * 11), {}),
        ("float.tif", Image.fromarray(np.asarray(xray()).astype(np.float32)), {}),
        ("bits.png", xray().convert("1"), {}),
        ("palette.png", xray(channels=3).quantize(16), {}),
        ("cmyk.tif", xray(channels=3).convert("CMYK"), {}),
        ("clear.png", Image.merge("LA", (xray(), xray())), {}),
        ("turned.png", xray(), {"exif": turned(6)}),
        ("turned.tif", xray(), {"exif": turned(5)}),
        ("small.jpg", xray((350, 200)), {}),
        ("turned.jpg", xray((350, 200), 3), {"exif": turned(8)}),
        ("tiny.jpg", xray((40, 20)), {}),
        ("strip.jpg", xray((6000, 32)), {}),
    ],
)
def test_pixels_are_those_that_the_processor_makes_of_the_whole_image(
    tmp_path: Path, image_processor, name: str, image: Image.Image, options: dict
):
    image.save(tmp_path / name, **options)
    assert torch.equal(read(image_processor, tmp_path / name), plain(image_processor, tmp_path / name))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_differs_from_the_whole_image_by_less_than_half_a_level_on_average(
    tmp_path: Path, image_processor, orientation: int, channels: int
):
    xray(channels=channels).save(tmp_path / "x.jpg", quality=95, exif=turned(orientation))
    made, expected = (rows(image_processor, tmp_path / "x.jpg").float() for rows in (read, plain))
    assert made.shape == expected.shape
    difference = (made - expected).abs()
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 12


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 70}, {"restart_marker_rows": 1}])
def test_jpegs_of_every_coding_are_read_at_reduced_scale(tmp_path: Path, image_processor, options: dict):
    xray((2203, 1605)).save(tmp_path / "x.jpg", **options)
    made, expected = (rows(image_processor, tmp_path / "x.jpg").float() for rows in (read, plain))
    assert made.shape == expected.shape
    assert 0 < (made - expected).abs().mean() < 0.5


def test_a_cmyk_jpeg_keeps_its_colors_at_reduced_scale(tmp_path: Path, image_processor):
    xray(channels=3).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    made, expected = (rows(image_processor, tmp_path / "x.jpg").float() for rows in (read, plain))
    assert (made - expected).abs().mean() < 0.5


def test_only_a_jpeg_of_twice_the_size_is_decoded_at_reduced_scale(tmp_path: Path, image_processor, monkeypatch):
    scales = []
    draft = JpegImageFile.draft

    def remember(self: JpegImageFile, *arguments: object) -> object:
        width = self.width
        made = draft(self, *arguments)
        scales.append(width // self.width)
        return made

    monkeypatch.setattr(JpegImageFile, "draft", remember)
    # 320 x 320 at most, so a square is resized to 320.
    for side in (600, 639, 640, 1279, 1280, 2560, 4000):
        xray((side, side)).save(tmp_path / "x.jpg")
        assert read(image_processor, tmp_path / "x.jpg").shape[0] == 400
    assert scales == [1, 1, 1, 1, 2, 4, 4]


def test_a_large_jpeg_that_is_cut_off_is_refused(tmp_path: Path, image_processor):
    xray().save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="x.jpg: cannot read the image .*truncated"):
        ImageReader(image_processor)(str(tmp_path / "x.jpg"))


def test_the_limit_of_pixels_is_that_of_the_file_and_not_of_what_is_decoded(tmp_path: Path, image_processor):
    xray().save(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match="1501 x 1103 pixels are more than the limit of 500000"):
        ImageReader(image_processor, 500_000)(str(tmp_path / "x.jpg"))


def test_an_aspect_that_the_processor_refuses_is_left_to_it(tmp_path: Path, image_processor):
    Image.new("L", (4000, 10)).save(tmp_path / "x.jpg")
    pixels = ImageReader(image_processor)(str(tmp_path / "x.jpg"))
    assert pixels.shape == (3, 10, 4000)
    with pytest.raises(ValueError, match="aspect ratio"):
        image_processor([pixels], return_tensors="pt")


def test_limits_that_are_set_later_are_those_that_count(tmp_path: Path, image_processor):
    xray().save(tmp_path / "x.jpg")
    reader = ImageReader(image_processor)
    assert reader(str(tmp_path / "x.jpg")).shape == (3, 256, 352)
    image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    assert reader(str(tmp_path / "x.jpg")).shape == (3, 96, 128)


@pytest.mark.parametrize("image_processor", [object(), Qwen2VLImageProcessor(do_resize=False)])
def test_a_processor_whose_resize_is_not_known_gets_the_whole_image(tmp_path: Path, image_processor):
    xray().save(tmp_path / "x.jpg")
    assert resizing_of(image_processor) is None
    image = ImageReader(image_processor)(str(tmp_path / "x.jpg"))
    assert (image.mode, image.size) == ("RGB", SIZE)


def test_a_filter_that_pillow_and_torchvision_compute_differently_is_left_to_the_processor(image_processor):
    image_processor.resample = Image.Resampling.LANCZOS
    assert resizing_of(image_processor) is None

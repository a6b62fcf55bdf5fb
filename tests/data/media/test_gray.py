"""Tests of bringing gray levels of any depth to 8 bits, on arrays, images, synthetic DICOM and pydicom's own files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.data.media import gray
from qwenvl.data.media.gray import RANGES, GrayRange, dicom_to_uint8, gray_to_uint8, levels_to_uint8
from qwenvl.data.media.images import read_image
from qwenvl.errors import UserError

pydicom = pytest.importorskip("pydicom")
from tests.data.dicom_files import make_dicom, make_lut  # noqa: E402

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def _shown(pixels: np.ndarray, kind: str = "window", bits: int | None = 12, **tags: object) -> np.ndarray:
    return dicom_to_uint8(make_dicom(pixels, bits, **tags), GrayRange(kind))


def test_levels_outside_the_range_are_clipped_and_what_is_no_number_is_black():
    levels = np.array([-np.inf, -5.0, 0.0, 50.0, 100.0, 105.0, np.inf, np.nan])
    assert levels_to_uint8(levels, 0, 100).tolist() == [0, 0, 0, 128, 255, 255, 255, 0]


def test_twelve_bit_levels_fill_all_of_eight_bits_and_stay_in_order():
    gray = gray_to_uint8(RAMP, GrayRange("minmax"))
    assert (gray.min(), gray.max(), len(np.unique(gray))) == (0, 255, 256)
    assert (np.diff(gray.reshape(-1).astype(int)) >= 0).all()


def test_percentiles_ignore_a_few_burnt_pixels():
    levels = RAMP.copy()
    levels[0, 0] = 65535
    assert gray_to_uint8(levels, GrayRange("minmax"))[-1, -1] < 20
    assert gray_to_uint8(levels, GrayRange("percentile", percentiles=(1, 99)))[-1, -1] == 255


@pytest.mark.parametrize(("bits", "white"), [(None, 4080 / 65535), (12, 4080 / 4095), (16, 4080 / 65535)])
def test_bits_show_everything_that_the_depth_can_hold(bits: int | None, white: float):
    gray = gray_to_uint8(RAMP, GrayRange("bits", bits=bits))
    assert gray[-1, -1] == round(white * 255)


def test_an_image_of_one_level_is_black_not_an_error():
    for kind in RANGES:
        assert gray_to_uint8(np.full((4, 4), 0, np.uint16), GrayRange(kind)).tolist() == np.zeros((4, 4)).tolist()


def test_floats_between_zero_and_one_are_not_black():
    levels = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert gray_to_uint8(levels, GrayRange("minmax"))[-1, -1] == 255
    with pytest.raises(UserError, match="an image of floats, which has no depth"):
        gray_to_uint8(levels, GrayRange("bits"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_files_are_read_in_full_depth(tmp_path: Path, suffix: str):
    Image.fromarray(RAMP).save(tmp_path / f"a{suffix}")
    shown = read_image(str(tmp_path / f"a{suffix}"), GrayRange("minmax"))
    assert shown.mode == "L"
    assert np.array_equal(np.asarray(shown), gray_to_uint8(RAMP, GrayRange("minmax")))


def test_a_sixteen_bit_tiff_whose_zero_is_white_is_turned_over(tmp_path: Path):
    Image.fromarray(RAMP).save(tmp_path / "a.tif", tiffinfo={262: 0})
    shown = np.asarray(read_image(str(tmp_path / "a.tif"), GrayRange("minmax")))
    assert (shown[0, 0], shown[-1, -1]) == (255, 0)


def test_an_eight_bit_image_is_left_alone(tmp_path: Path):
    Image.new("RGB", (2, 2), (200, 3, 4)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), GrayRange("minmax")).getpixel((0, 0)) == (200, 3, 4)


def test_monochrome1_is_turned_over():
    straight = _shown(RAMP)
    assert np.array_equal(_shown(RAMP, PhotometricInterpretation="MONOCHROME1"), 255 - straight)


def test_the_window_of_the_file_is_used_and_follows_the_standard():
    shown = _shown(RAMP, WindowCenter=2048, WindowWidth=1024).astype(int)
    expected = np.clip(((RAMP - 2047.5) / 1023 + 0.5) * 255, 0, 255)
    assert np.abs(shown - expected).max() <= 0.5 + 1e-3
    first_of_two = _shown(RAMP, WindowCenter=[2048, 100], WindowWidth=[1024, 10])
    assert np.array_equal(first_of_two, shown)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str):
    dataset = make_dicom(RAMP, 12, WindowCenter=1500, WindowWidth=700, VOILUTFunction=function)
    theirs = pydicom.pixels.apply_windowing(RAMP, dataset) / 4095 * 255
    assert np.abs(dicom_to_uint8(dataset, GrayRange()) - theirs).max() < 0.51


def test_the_rescale_is_applied_before_the_window():
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    shown = _shown(RAMP, WindowCenter=2000, WindowWidth=1000, **tags)
    expected = gray.window_to_uint8(RAMP * 2.0 - 1000, 2000, 1000)
    assert np.array_equal(shown, expected)


def test_a_negative_slope_keeps_black_below_white_with_bits():
    shown = _shown(RAMP, "bits", RescaleSlope=-1, RescaleIntercept=4095)
    assert (shown[0, 0], shown[-1, -1]) == (255, round(15 / 4095 * 255))


def test_a_voi_lut_of_more_than_256_entries_of_8_bits_is_looked_up_right():
    table = [round(255 * (entry / 4095) ** 2) for entry in range(4096)]
    shown = _shown(RAMP, VOILUTSequence=[make_lut(table, 0, 8)])
    assert np.array_equal(shown, np.array(table)[RAMP])


def test_a_voi_lut_is_preferred_to_a_window_and_holds_its_ends():
    item = make_lut([0, 100, 4095], 1000, 12)
    shown = _shown(RAMP, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    assert (shown[RAMP < 1000] == 0).all() and (shown[RAMP >= 1002] == 255).all()


def test_a_modality_lut_is_applied_first():
    table = list(range(4095, -1, -1))
    tags = {"ModalityLUTSequence": [make_lut(table, 0, 16)], "WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(_shown(RAMP, **tags), _shown(4095 - RAMP, WindowCenter=2048, WindowWidth=4096))


def test_a_given_window_takes_the_place_of_the_files_own():
    dataset = make_dicom(RAMP, 12, WindowCenter=1, WindowWidth=2)
    shown = dicom_to_uint8(dataset, GrayRange("window", window=(2048, 4096)))
    assert 0 < shown[8, 0] < 255


def test_padding_does_not_stretch_the_range_and_is_shown_at_its_end():
    levels = (RAMP // 4 + 1000).astype(np.uint16)
    levels[:, :2] = 0
    shown = _shown(levels, "minmax", PixelPaddingValue=0)
    assert (shown[:, :2] == 0).all() and shown[:, 2:].max() == 255 and shown[0, 2] < 3
    assert _shown(levels, "minmax")[0, 2] > 100


def test_signed_pixels_are_read_as_signed():
    signed = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    assert np.array_equal(_shown(signed, "minmax"), _shown(RAMP, "minmax"))
    assert np.array_equal(_shown(signed, "bits"), _shown(RAMP, "bits"))


def test_without_a_window_everything_that_occurs_is_shown():
    assert np.array_equal(_shown(RAMP), gray_to_uint8(RAMP, GrayRange("minmax")))


def test_a_frame_is_picked_only_when_asked_for():
    dataset = make_dicom(np.stack([RAMP, RAMP[::-1]]), 12)
    with pytest.raises(UserError, match="2 frames in one file"):
        dicom_to_uint8(dataset, GrayRange())
    assert np.array_equal(dicom_to_uint8(dataset, GrayRange(), frame=1), _shown(RAMP[::-1]))
    with pytest.raises(UserError, match="frame 2 is not there"):
        dicom_to_uint8(dataset, GrayRange(), frame=2)


def test_no_pixels_and_too_few_bytes_have_different_errors():
    dataset = make_dicom(RAMP, 12)
    dataset.PixelData = dataset.PixelData[:-2]
    with pytest.raises(UserError, match="damaged DICOM"):
        dicom_to_uint8(dataset, GrayRange())
    del dataset.PixelData
    with pytest.raises(UserError, match="without pixels .modality DX."):
        dicom_to_uint8(dataset, GrayRange())


@pytest.mark.skipif(
    pydicom.pixels.get_decoder(pydicom.uid.JPEGLSNearLossless).is_available, reason="a decoder is installed"
)
def test_a_syntax_with_no_decoder_names_the_extra_to_install():
    with pytest.raises(UserError, match=r"no decoder .*JPEG-LS.*pip install -e \"\.\[medical\]\""):
        dicom_to_uint8(pydicom.dcmread(_file("JPEGLSNearLossless_08.dcm")), GrayRange())


def _file(name: str) -> str:
    return pydicom.data.get_testdata_file(name, download=False)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CT_small.dcm", (128, 128)),
        ("MR_small_RLE.dcm", (64, 64)),
        ("MR_small_bigendian.dcm", (64, 64)),
        ("SC_rgb_rle_16bit.dcm", (100, 100, 3)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3)),
        ("examples_palette.dcm", None),
        ("JPEG2000.dcm", (1024, 256)),
    ],
)
def test_real_files_give_an_image_that_is_neither_black_nor_flat(name: str, shape: tuple[int, ...] | None):
    dataset = pydicom.dcmread(_file(name))
    shown = dicom_to_uint8(dataset, GrayRange())
    assert shown.dtype == np.uint8 and (shape is None or shown.shape == shape)
    assert len(np.unique(shown)) > 4 and shown.std() > 5


@pytest.mark.filterwarnings("ignore")
def test_every_file_of_pydicom_gives_an_image_or_one_line_of_reason():
    folder = Path(_file("CT_small.dcm")).parent
    outcomes = {"image": 0, "reason": 0}
    for path in sorted(folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path, force=True)
        try:
            dicom_to_uint8(dataset, GrayRange())
            outcomes["image"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) > 20
            outcomes["reason"] += 1
    assert outcomes["image"] > 40 and outcomes["reason"] > 10


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "auto"}, {"percentiles": (5, 5)}, {"percentiles": (-1, 50)}, {"window": (10, 0)}, {"bits": 40}],
)
def test_a_range_that_makes_no_sense_is_the_users_error(wrong: dict):
    with pytest.raises(UserError):
        GrayRange(**wrong)


def test_a_window_of_no_width_in_the_file_is_named():
    with pytest.raises(UserError, match="window of width 0"):
        _shown(RAMP, WindowCenter=10, WindowWidth=0)

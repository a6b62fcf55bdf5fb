"""The published preprocessing: every encoder's input is what the library's own image processor makes of a picture."""

import json

import numpy as np
import pytest
import torch
from timm.data import create_transform
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    DINOv3ViTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor, convert_image_to_patches

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions, list_encoders
from qwenvl.vision.encoders.published import published_preprocessing
from qwenvl.vision.preprocessing import Geometry, Preprocessing, TokenRule
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS, name_of, picture

# Grey levels of 255. Both sides round a resized picture to whole levels, but DINOv3's, which rescales first, and PIL's
# filters, which timm uses, may fall on the level beside; another filter, crop or normalisation is off by dozens.
TOLERANCE = 2.0
# Wide, with an odd number of pixels to cut: one pixel beside the centre would show.
SIZE = (61, 98)

RAD_DINO = BitImageProcessor(
    size={"shortest_edge": 28}, crop_size=28, image_mean=[0.5307] * 3, image_std=[0.2583] * 3, resample=3
)
IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
BILINEAR_SIGLIP = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)
# What each family publishes, at the sizes of the small configurations.
DEFAULTS = {
    "rad_dino": RAD_DINO,
    "rad_dino_maira2": RAD_DINO,
    "dinov2": BitImageProcessor(size={"shortest_edge": 32}, crop_size=28, **IMAGENET),
    "dinov3": DINOv3ViTImageProcessor(size=32),
    "siglip": SiglipImageProcessor(size={"height": 32, "width": 32}),
    "siglip2": BILINEAR_SIGLIP,
    "medsiglip": BILINEAR_SIGLIP,
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    "aimv2": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    "c_radio": CLIPImageProcessor(do_normalize=False, do_center_crop=False, size={"height": 64, "width": 64}),
    "hf:vit": ViTImageProcessor(size=32),
}
TIMM_DEFAULTS = {
    "biomedclip": {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD, "interpolation": "bicubic", "crop_pct": 1.0},
    "timm:vit_tiny_patch16_224": {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    },
}
SAVED = {
    "bilinear where ViT's file names no filter": {"image_processor_type": "ViTImageProcessor", "size": 40},
    "an old feature extractor": {"feature_extractor_type": "ViTFeatureExtractor", "size": 40, "image_mean": [0.1] * 3},
    "rescaled to 0..2": {"image_processor_type": "ViTImageProcessor", "size": 40, "rescale_factor": 1 / 127.5},
    "not rescaled": {"image_processor_type": "ViTImageProcessor", "size": 40, "do_rescale": False},
    "not normalised": {"image_processor_type": "ViTImageProcessor", "size": 40, "do_normalize": False},
    "nearest": {"image_processor_type": "ViTImageProcessor", "size": 40, "resample": 0},
    "squashed, then cut": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 48, "width": 48},
        "crop_size": {"height": 40, "width": 40},
    },
    "a ConvNeXt's crop": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 40}},
    "a large ConvNeXt's squash": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "an odd cut": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 45}, "crop_size": 40},
    "rescaled before the resize": {"image_processor_type": "DINOv3ViTImageProcessor", "size": 40},
    "squashed and not square": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 40, "width": 24}},
}


def assert_equal_input(wanted: Preprocessing, expected: torch.Tensor) -> None:
    pixels = torch.from_numpy(np.array(picture(*SIZE))).permute(2, 0, 1)[None]
    made = Geometry(wanted, TokenRule(1)).prepare(pixels)
    assert made.shape == expected.shape
    levels = (made - expected).abs() * 255 * torch.tensor(wanted.std).view(3, 1, 1)
    assert levels.max() <= TOLERANCE


def write(folder, values, name="preprocessor_config.json"):
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return str(folder)


def test_every_registered_encoder_is_compared_here():
    assert set(list_encoders()) <= {*DEFAULTS, *TIMM_DEFAULTS}


@pytest.mark.parametrize("case", DEFAULTS)
def test_default_input_is_that_of_the_librarys_image_processor(case):
    wanted = resolve_encoder(name_of(case), config=SMALL_ENCODERS[case]).preprocessing
    assert_equal_input(wanted, DEFAULTS[case](picture(*SIZE), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("case", DEFAULTS)
def test_input_by_the_file_is_that_of_the_librarys_image_processor(case, tmp_path):
    DEFAULTS[case].save_pretrained(tmp_path)
    expected = DEFAULTS[case](picture(*SIZE), return_tensors="pt")["pixel_values"]
    assert_equal_input(published_preprocessing(str(tmp_path)), expected)


@pytest.mark.parametrize("case", TIMM_DEFAULTS)
def test_default_input_is_that_of_timms_transform(case):
    wanted = resolve_encoder(case, config=SMALL_ENCODERS[case]).preprocessing
    transform = create_transform(32, is_training=False, **TIMM_DEFAULTS[case])
    assert_equal_input(wanted, transform(picture(*SIZE))[None])


def test_default_input_of_naflex_is_that_of_the_librarys_image_processor():
    wanted = resolve_encoder("siglip2", config=SMALL_ENCODERS["siglip2#naflex"]).preprocessing
    made = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)(picture(*SIZE), return_tensors="pt")
    geometry = Geometry(wanted, TokenRule(8))
    assert list(geometry.grid(*SIZE)) == made["spatial_shapes"][0].tolist()
    pixels = geometry.prepare(torch.from_numpy(np.array(picture(*SIZE))).permute(2, 0, 1)[None])
    patches = convert_image_to_patches(pixels[0], 8)
    assert torch.allclose(patches, made["pixel_values"][0, : len(patches)], atol=1e-5)


@pytest.mark.parametrize("what", SAVED)
def test_file_is_followed_with_the_defaults_of_the_class_that_it_names(what, tmp_path):
    wanted = published_preprocessing(write(tmp_path, SAVED[what]))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert_equal_input(wanted, processor(picture(*SIZE), return_tensors="pt")["pixel_values"])


def test_folder_without_a_file_publishes_nothing(tmp_path):
    assert published_preprocessing(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", r"preprocessor_config.json' is not a valid JSON file.; mend the file"),
        ("[1]", r"preprocessor_config.json\) cannot be used"),
        ({"image_processor_type": "AbsentProcessor"}, r"Unrecognized image processor .*mend the file"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 5}, "resample 5 .*expected 0 .nearest.*3 .bicubic"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, r"image_mean is \(0.5, 0.5\)"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "something else of a picture"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor makes something else of a picture"),
    ],
)
def test_file_that_cannot_be_followed_is_named_in_one_line(values, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        published_preprocessing(write(tmp_path, values))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_aspect_kept_by_a_shorter_side_is_refused_until_a_policy_is_chosen(tmp_path):
    build_encoder(resolve_encoder("dinov2", config=SMALL_ENCODERS["dinov2"])).model.save_pretrained(tmp_path)
    write(
        tmp_path, {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": False}
    )
    with pytest.raises(
        UserError, match="no resize policy does, such as a shorter side without a crop; choose --vision"
    ):
        resolve_encoder("dinov2", path=str(tmp_path))
    chosen = resolve_encoder("dinov2", path=str(tmp_path), options=EncoderOptions(resize="squash")).preprocessing
    assert (chosen.height, chosen.width, chosen.mean) == (28, 28, tuple(OPENAI_CLIP_MEAN))


def test_dinov2_takes_its_published_256_tokens_and_not_all_its_positions():
    config = {**SMALL_ENCODERS["dinov2"], "image_size": 518, "patch_size": 14}
    published = resolve_encoder("dinov2", config=config).preprocessing
    assert (published.height, published.width, published.resize_edge) == (224, 224, 256)
    assert resolve_encoder("rad_dino", config=config).preprocessing.height == 518


def test_timm_config_beside_the_weights_is_followed(tmp_path):
    settings = {
        "interpolation": "bilinear",
        "crop_pct": 0.8,
        "crop_mode": "squash",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    write(tmp_path, {"pretrained_cfg": {**settings, "input_size": [3, 64, 64]}}, "config.json")
    (tmp_path / "model.safetensors").touch()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        wanted = resolve_encoder("timm:resnet18", path=str(path)).preprocessing
        transform = create_transform(64, is_training=False, **settings)
        assert_equal_input(wanted, transform(picture(*SIZE))[None])


def test_timm_border_is_padding_with_the_mean_colour(tmp_path):
    border = {"pretrained_cfg": {"crop_mode": "border", "crop_pct": 1.0, "input_size": [3, 64, 64]}}
    wanted = resolve_encoder("timm:resnet18", path=write(tmp_path, border, "config.json")).preprocessing
    assert (wanted.resize, wanted.height) == ("pad", 64)
    border["pretrained_cfg"]["crop_pct"] = 0.9
    with pytest.raises(UserError, match="no resize policy does"):
        resolve_encoder("timm:resnet18", path=write(tmp_path, border, "config.json"))


def test_model_of_fixed_size_is_built_for_the_size_in_its_timm_config(tmp_path):
    saved = {"pretrained_cfg": {"input_size": [3, 384, 384]}}
    spec = resolve_encoder("timm:vit_tiny_patch16_224", path=write(tmp_path, saved, "config.json"))
    assert (spec.preprocessing.height, spec.preprocessing.width) == (384, 384)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "config.json: not valid JSON"),
        ("[]", "config.json: holds a list, expected a JSON object"),
        ({"pretrained_cfg": {"mean": [0.5]}}, r"mean in config.json is \[0.5\]; expected three numbers"),
        ({"pretrained_cfg": {"interpolation": "hamming"}}, "interpolation 'hamming' has no form here"),
    ],
)
def test_timm_config_that_cannot_be_followed_is_named(values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        resolve_encoder("timm:resnet18", path=write(tmp_path, values, "config.json"))


def test_open_clip_settings_beside_biomedclip_are_followed(tmp_path):
    published = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    folder = write(tmp_path, {"preprocess_cfg": published}, "open_clip_config.json")
    wanted = resolve_encoder("biomedclip", path=folder).preprocessing
    assert (wanted.resize, wanted.interpolation) == ("squash", "bilinear")
    assert (wanted.mean, wanted.std, wanted.height) == ((0.1,) * 3, (0.2,) * 3, 224)
    with pytest.raises(UserError, match="resize_mode 'longest' in open_clip_config.json"):
        write(tmp_path, {"preprocess_cfg": {"resize_mode": "longest"}}, "open_clip_config.json")
        resolve_encoder("biomedclip", path=folder)


def test_default_of_biomedclip_asks_no_hub():
    published = resolve_encoder("biomedclip").preprocessing
    assert (published.height, published.resize, published.mean) == (224, "crop", tuple(OPENAI_CLIP_MEAN))

"""The published preprocessing: every encoder's input is what the library's own image processor makes of an image."""

import pytest
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

from qwenvl.errors import UserError
from qwenvl.vision import EncoderOptions, list_encoders
from qwenvl.vision.encoders.published import published_preprocessing
from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.encoders.comparing import SIZE, assert_equal_input, write_json
from tests.vision.small_encoders import SMALL_ENCODERS, name_of, random_image

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
    "not normalized": {"image_processor_type": "ViTImageProcessor", "size": 40, "do_normalize": False},
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


def test_every_registered_encoder_is_compared_here():
    assert set(list_encoders()) <= {*DEFAULTS, *TIMM_DEFAULTS}


@pytest.mark.parametrize("case", DEFAULTS)
def test_default_input_is_that_of_the_librarys_image_processor(case):
    wanted = resolve_encoder(name_of(case), config=SMALL_ENCODERS[case]).preprocessing
    assert_equal_input(wanted, DEFAULTS[case](random_image(*SIZE), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("case", DEFAULTS)
def test_input_by_the_file_is_that_of_the_librarys_image_processor(case, tmp_path):
    DEFAULTS[case].save_pretrained(tmp_path)
    expected = DEFAULTS[case](random_image(*SIZE), return_tensors="pt")["pixel_values"]
    assert_equal_input(published_preprocessing(str(tmp_path)), expected)


@pytest.mark.parametrize("case", TIMM_DEFAULTS)
def test_default_input_is_that_of_timms_transform(case):
    wanted = resolve_encoder(case, config=SMALL_ENCODERS[case]).preprocessing
    transform = create_transform(32, is_training=False, **TIMM_DEFAULTS[case])
    assert_equal_input(wanted, transform(random_image(*SIZE))[None])


@pytest.mark.parametrize("what", SAVED)
def test_file_is_followed_with_the_defaults_of_the_class_that_it_names(what, tmp_path):
    wanted = published_preprocessing(write_json(tmp_path, SAVED[what]))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert_equal_input(wanted, processor(random_image(*SIZE), return_tensors="pt")["pixel_values"])


def test_folder_without_a_file_publishes_nothing(tmp_path):
    assert published_preprocessing(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", r"preprocessor_config.json' is not a valid JSON file.; correct the file"),
        ("[1]", r"preprocessor_config.json\) cannot be used"),
        ({"image_processor_type": "AbsentProcessor"}, r"Unrecognized image processor .*correct the file"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 5}, "resample 5 .*expected 0 .nearest.*3 .bicubic"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}, r"image_mean is \(0.5, 0.5\)"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "does more to an image"),
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "Qwen2VLImageProcessor does more to an image"),
    ],
)
def test_file_that_cannot_be_followed_is_named_in_one_line(values, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        published_preprocessing(write_json(tmp_path, values))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_aspect_kept_by_a_shorter_side_is_refused_until_a_policy_is_chosen(tmp_path):
    build_encoder(resolve_encoder("dinov2", config=SMALL_ENCODERS["dinov2"])).model.save_pretrained(tmp_path)
    write_json(
        tmp_path, {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "do_center_crop": False}
    )
    with pytest.raises(
        UserError, match="no resize policy does, such as a shorter side without a crop; choose --vision"
    ):
        resolve_encoder("dinov2", path=str(tmp_path))
    chosen = resolve_encoder("dinov2", path=str(tmp_path), options=EncoderOptions(resize="squash")).preprocessing
    assert (chosen.height, chosen.width, chosen.mean) == (28, 28, tuple(OPENAI_CLIP_MEAN))

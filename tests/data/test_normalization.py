"""Tests of normalizing patches after the image processor, on the device: its own floats, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from transformers import ProcessorMixin, Qwen2VLImageProcessor

from qwenvl.data.annotations import Record
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.normalization import patch_normalizer

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EVERY_LEVEL = torch.arange(256, dtype=torch.uint8).repeat(588).reshape(3, 224, 224)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "patch_size": 16},
        {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        {"temporal_patch_size": 1, "patch_size": 8, "rescale_factor": 1 / 127.5},
    ],
)
def test_every_level_of_every_channel_becomes_the_float_that_the_image_processor_makes(settings: dict, device: str):
    processor = Qwen2VLImageProcessor(**settings)
    expected = processor([EVERY_LEVEL], return_tensors="pt")["pixel_values"]
    rows = processor([EVERY_LEVEL], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert rows.dtype == torch.uint8
    made = patch_normalizer(processor)(rows.to(device))
    assert made.dtype == torch.float32
    assert torch.equal(made.cpu(), expected)


@pytest.mark.parametrize("kind", ["image", "two images", "image and video", "video", "text"])
def test_a_sample_whose_normalization_is_deferred_becomes_the_same_sample(
    processor: ProcessorMixin, every_kind: dict[str, Record], kind: str
):
    expected = RecordEncoder(processor).encode(every_kind[kind])
    encoder = RecordEncoder(processor)
    normalize = encoder.defer_normalization()
    sample = encoder.encode(every_kind[kind])
    assert sample.keys() == expected.keys()
    if "pixel_values" in sample:
        assert sample["pixel_values"].dtype == torch.uint8
        sample["pixel_values"] = normalize(sample["pixel_values"])
    assert all(torch.equal(sample[key], expected[key]) for key in expected)


def test_blank_samples_are_of_the_kind_of_the_others(processor: ProcessorMixin):
    encoder = RecordEncoder(processor)
    expected = encoder.blank_samples()["image"]["pixel_values"]
    normalize = encoder.defer_normalization()
    blank = encoder.blank_samples()["image"]["pixel_values"]
    assert blank.dtype == torch.uint8
    assert torch.equal(normalize(blank), expected)


@pytest.mark.parametrize("image_processor", [object(), Qwen2VLImageProcessor(do_normalize=False)])
def test_a_processor_whose_rows_are_not_known_normalizes_them_itself(image_processor: object):
    assert patch_normalizer(image_processor) is None


def test_rows_that_are_floats_are_normalized_already(processor: ProcessorMixin, make_record: Callable[..., Record]):
    sample = RecordEncoder(processor).encode(make_record("<image>?", "Yes.", images=("red.png",)))
    rows = sample["pixel_values"]
    assert patch_normalizer(processor.image_processor)(rows) is rows

"""Samples: what one record becomes with a model's processor."""

import re
from collections.abc import Callable

import pytest
import torch
from transformers import ProcessorMixin

from qwenvl.data.annotations import Record
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.data.media.images import load_image
from qwenvl.data.media.videos import load_video
from qwenvl.errors import UserError


def test_a_sample_is_what_the_processor_makes_of_the_chat(
    processor: ProcessorMixin, make_record: Callable[..., Record]
):
    record = make_record("<image>What?", "Red.", "<image>And this?", "Wide.", images=("red.png", "wide.png"))
    images = [load_image(path) for path in record.images]
    chat = [
        {"role": "user", "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": [{"type": "image", "image": images[1]}, {"type": "text", "text": "And this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Wide."}]},
    ]
    expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    sample = RecordEncoder(processor).encode(record)
    assert torch.equal(sample["input_ids"], expected["input_ids"][0])
    for key in ("pixel_values", "image_grid_thw"):
        assert torch.equal(sample[key], expected[key])


def test_a_video_is_sampled_by_the_processors_rule_and_stamped_with_its_times(
    own_processor: ProcessorMixin, make_record: Callable[..., Record]
):
    own_processor.video_processor.fps, own_processor.video_processor.min_frames = 2.0, 4
    record = make_record("<video>What happens?", "It moves.", videos=("clip.mp4",))
    sample = RecordEncoder(own_processor).encode(record)
    text = own_processor.tokenizer.decode(sample["input_ids"])
    # 16 frames at 8 per second, of which 0, 5, 10 and 15 are taken and joined two by two.
    assert "<0.3 seconds>" in text and "<1.6 seconds>" in text and text.count(" seconds>") == 2
    assert sample["video_grid_thw"].tolist() == [[2, 4, 4]]
    assert "pixel_values" not in sample


def test_a_video_has_the_markers_that_the_processor_writes_at_inference(
    processor: ProcessorMixin, make_record: Callable[..., Record]
):
    """Transformers since 5.10 keeps the markers around a video and adds a pair around each of its time steps."""
    record = make_record("<video>What happens?", "It moves.", videos=("clip.mp4",))
    frames, metadata = load_video(record.videos[0], processor.video_processor)
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    prompt = processor(
        text=[processor.apply_chat_template(chat, add_generation_prompt=True)],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )["input_ids"][0]
    ids = RecordEncoder(processor).encode(record)["input_ids"]
    assert torch.equal(ids[: len(prompt)], prompt)
    text = re.sub(r"(<\|video_pad\|>)+", "*", processor.tokenizer.decode(prompt))
    steps = text.count(" seconds>")
    step = r"<\d+\.\d seconds><\|vision_start\|>\*<\|vision_end\|>"
    assert re.search(rf"user\n<\|vision_start\|>({step}){{{steps}}}<\|vision_end\|>What happens\?", text), text


def test_pixels_belong_to_the_images_in_their_order(processor: ProcessorMixin, make_record: Callable[..., Record]):
    encoder = RecordEncoder(processor)
    both = encoder.encode(make_record("<image><image>?", "Yes.", images=("tall.png", "red.png")))
    alone = [encoder.encode(make_record("<image>?", "Yes.", images=(name,))) for name in ("tall.png", "red.png")]
    assert torch.equal(both["pixel_values"], torch.cat([sample["pixel_values"] for sample in alone]))


def test_encoding_twice_gives_the_same_bits(processor: ProcessorMixin, every_kind: dict[str, Record]):
    encoder = RecordEncoder(processor)
    for record in every_kind.values():
        first, second = encoder.encode(record), encoder.encode(record)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_labels_are_those_of_the_answers(processor: ProcessorMixin, every_kind: dict[str, Record]):
    sample = RecordEncoder(processor).encode(every_kind["images in two turns"])
    supervised = sample["labels"][sample["labels"] != IGNORE_INDEX]
    assert processor.tokenizer.decode(supervised) == "Grey.<|im_end|>Red.<|im_end|>"


def test_a_file_that_cannot_be_read_is_named(processor: ProcessorMixin, make_record: Callable[..., Record]):
    with pytest.raises(UserError, match="gone.png"):
        RecordEncoder(processor).encode(make_record("<image>?", "Yes.", images=("gone.png",)))

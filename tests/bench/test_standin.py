"""Tests of the stand-in model folder: that it loads, speaks and is shaped like a real Qwen3-VL folder."""

import filecmp
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from qwenvl.bench.standin import PLAIN_ADDED_TOKENS, SPECIAL_TOKENS, build_standin
from qwenvl.data.media.videos import VideoInfo, video_info

REAL_IMAGE_TOKEN_ID = 151655
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this? "}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And this?"}]},
    {"role": "assistant", "content": "A ball."},
]


def render(processor: ProcessorMixin, messages: list[dict], **options: bool) -> str:
    return processor.apply_chat_template(messages, tokenize=False, **options)


def test_special_ids_differ_from_the_real_ones_and_config_agrees_with_the_tokenizer(standin: Path, processor):
    config = AutoConfig.from_pretrained(standin)
    ids = dict(zip(SPECIAL_TOKENS, processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    assert config.image_token_id == ids["<|image_pad|>"] == processor.image_token_id != REAL_IMAGE_TOKEN_ID
    assert config.video_token_id == ids["<|video_pad|>"] == processor.video_token_id
    assert config.vision_start_token_id == ids["<|vision_start|>"]
    assert config.vision_end_token_id == ids["<|vision_end|>"]
    assert processor.tokenizer.eos_token_id == ids["<|im_end|>"]
    assert processor.tokenizer.pad_token_id == ids["<|endoftext|>"]
    assert len(processor.tokenizer) <= config.text_config.vocab_size


@pytest.mark.parametrize("token", SPECIAL_TOKENS + PLAIN_ADDED_TOKENS)
def test_each_added_token_is_one_token(processor, token: str):
    assert len(processor.tokenizer(f"a{token}b", add_special_tokens=False).input_ids) == 3


def test_text_survives_encoding_byte_for_byte(processor):
    text = "Größe: 12 µm, 心臓 – naïve\n\n  <think>\nhm</think>"
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


def test_instruct_template_renders_as_qwen3_vl_instruct_does(processor):
    assert render(processor, CONVERSATION) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is this? <|im_end|>\n"
        "<|im_start|>assistant\nA circle.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>And this?<|im_end|>\n"
        "<|im_start|>assistant\nA ball.<|im_end|>\n"
    )
    assert render(processor, CONVERSATION[:2], add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_thinking_template_keeps_only_the_last_thought(tmp_path: Path):
    processor = AutoProcessor.from_pretrained(build_standin(tmp_path, thinking=True))
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": "Two?"},
    ]
    head = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
    assert render(processor, messages, add_generation_prompt=True) == head + "<|im_start|>assistant\n<think>\n"
    thought = [*messages, {"role": "assistant", "content": "<think>\nwell\n</think>\n\nNo."}]
    assert render(processor, thought) == head + "<|im_start|>assistant\n<think>\nwell\n</think>\n\nNo.<|im_end|>\n"
    plain = [*messages, {"role": "assistant", "content": "No."}]
    assert render(processor, plain) == head + "<|im_start|>assistant\n<think>\n\n</think>\n\nNo.<|im_end|>\n"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "Qwen3VLForConditionalGeneration"),
        ({"hidden_size": 96, "vision_hidden_size": 32, "num_layers": 2}, "Qwen3VLForConditionalGeneration"),
        ({"tie_word_embeddings": False}, "Qwen3VLForConditionalGeneration"),
        ({"moe": True}, "Qwen3VLMoeForConditionalGeneration"),
        ({"moe": True, "tie_word_embeddings": False}, "Qwen3VLMoeForConditionalGeneration"),
    ],
)
def test_every_variant_loads_and_answers_a_picture(tmp_path: Path, media: Path, options: dict, name: str):
    folder = build_standin(tmp_path, **options)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == name
    assert len(model.model.visual.deepstack_merger_list) == 2
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == options.get("tie_word_embeddings", True)
    text = render(processor, CONVERSATION[:2], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(media / "wide.png")], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 5 * 3
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3


def test_the_picture_reaches_the_logits(standin: Path, processor, media: Path):
    model = AutoModelForImageTextToText.from_pretrained(standin)
    text = render(processor, CONVERSATION[:2], add_generation_prompt=True)
    picture = Image.open(media / "red.png")
    logits = [
        model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
        for image in (picture, picture.rotate(90))
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_same_arguments_give_the_same_files_and_another_seed_other_weights(standin: Path, tmp_path: Path):
    state = torch.random.get_rng_state()
    again, other = build_standin(tmp_path / "again"), build_standin(tmp_path / "other", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    names = sorted(path.name for path in standin.iterdir())
    assert filecmp.cmpfiles(standin, again, names, shallow=False) == (names, [], [])
    assert filecmp.cmpfiles(standin, other, names, shallow=False)[1] == ["model.safetensors"]


def test_media_fixture_video_is_what_it_says(media: Path):
    assert video_info(str(media / "clip.mp4")) == VideoInfo(total_frames=16, fps=8.0, height=64, width=64)

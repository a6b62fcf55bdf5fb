"""The custom tower behind the data pipeline: counts from headers, batches of many sizes, a loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.collators import DataCollatorForSupervisedDataset, FlattenedDataCollatorForSupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.data.media.image_reader import ImageReader
from qwenvl.data.media.images import load_image
from qwenvl.model.forward import hidden_states
from qwenvl.vision import EncoderOptions, Preprocessing
from qwenvl.vision.preprocessing import Geometry, TokenRule
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import grids_of
from tests.vision.small_encoders import swap, with_encoder

TOWERS = {
    "one size": with_encoder("rad_dino"),
    "official pixels": with_encoder("dinov2", input_mode="qwen"),
    "prefix tokens": with_encoder("clip", options=EncoderOptions(keep_prefix_tokens=True)),
    "native aspect": with_encoder("siglip2#naflex"),
    "native aspect, official pixels": with_encoder("siglip2#naflex", input_mode="qwen"),
}

POLICIES = {
    "crop": Preprocessing(64, 64),
    "crop to another shape after a larger edge": Preprocessing(48, 80, resize_edge=56, rounded_cut=True),
    "squash": Preprocessing(64, 48, resize="squash", interpolation="bilinear"),
    "squash and cut": Preprocessing(64, 64, resize="squash", resize_edge=72),
    "squash by another filter": Preprocessing(64, 48, resize="squash", interpolation="nearest-exact"),
    "pad": Preprocessing(64, 64, resize="pad", mean=(0.4, 0.5, 0.6)),
    "native": Preprocessing(resize="native", min_pixels=16 * 16, max_pixels=80 * 80),
    "naflex": Preprocessing(resize="naflex", max_pixels=80 * 80),
}


def record(media: Path, images: tuple[str, ...] = (), videos: tuple[str, ...] = ()) -> Record:
    asked = "<image>" * len(images) + "<video>" * len(videos) + "What is it?"
    turns = (Turn("user", asked), Turn("assistant", "A shape."))
    return Record("test.json", 0, turns, *(tuple(str(media / name) for name in names) for names in (images, videos)))


@pytest.fixture
def records(media: Path) -> list[Record]:
    return [
        record(media, images=("red.png",)),
        record(media, images=("wide.png", "tall.png", "grey.png")),
        record(media, videos=("clip.mp4",)),
        record(media, images=("tall.png",), videos=("clip.mp4",)),
        record(media),
    ]


def samples(processor: ProcessorMixin, records: list[Record]) -> list[dict]:
    encoder = RecordEncoder(processor)
    return [encoder.encode(each) | {"index": i, "is_padding": False} for i, each in enumerate(records)]


@pytest.mark.parametrize("tower", TOWERS)
def test_tokens_counted_from_headers_are_those_of_the_samples(standin, records, tower, tmp_path):
    _, processor = swap(standin, TOWERS[tower])
    counts = TokenCounter(RecordEncoder(processor)).count(records, read_media_sizes(records, str(tmp_path)))
    assert not counts.bad
    assert counts.total.tolist() == [len(sample["input_ids"]) for sample in samples(processor, records)]


@pytest.mark.parametrize("tower", TOWERS)
def test_padded_and_packed_batches_give_the_logits_of_single_samples(standin, records, tower):
    model, processor = swap(standin, TOWERS[tower])
    model.config.use_cache = model.config.text_config.use_cache = False
    made = samples(processor, records)
    encoder = RecordEncoder(processor)
    blanks, placeholders = encoder.blank_samples(), encoder.placeholders
    pad_token_id = processor.tokenizer.pad_token_id
    padded = DataCollatorForSupervisedDataset(blanks, placeholders=placeholders, pad_token_id=pad_token_id)
    packed = FlattenedDataCollatorForSupervisedDataset(blanks, placeholders=placeholders, layout_of=grids_of)
    alone = torch.cat([_logits(model, padded([sample])) for sample in made])
    assert torch.allclose(_logits(model, padded(made)), alone, atol=1e-4)
    assert torch.allclose(_logits(model, packed(made)), alone, atol=1e-4)


@torch.no_grad()
def _logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key not in ("meta", "supervised_rows", "targets")}
    return model.lm_head(hidden_states(model.model, **inputs).flatten(0, 1)[batch["supervised_rows"]])


def shaded(size: tuple[int, int]) -> Image.Image:
    """Return smooth shadows with some grain, (W, H)."""
    random = np.random.default_rng(0)
    shadows = Image.fromarray(random.integers(0, 255, (7, 7), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.integers(-4, 5, (*size[::-1], 1)) + np.array([0, 9, 18])
    return Image.fromarray((np.asarray(shadows)[..., None] + grain).clip(0, 255).astype(np.uint8))


def prepared(policy: str, path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixel values and grid of an image read whole and by the reader."""
    geometry = Geometry(POLICIES[policy], TokenRule(8))
    preprocessing = geometry.preprocessing
    limits = {"shortest_edge": preprocessing.min_pixels or 0, "longest_edge": preprocessing.max_pixels or 0}
    processor = CustomVisionImageProcessor(geometry.to_dict(), hidden_size=8, size=limits)
    whole, reduced = (
        processor([read(str(path))], return_tensors="pt") for read in (load_image, ImageReader(processor))
    )
    return whole["pixel_values"], whole["image_grid_thw"], reduced["pixel_values"], reduced["image_grid_thw"]


@pytest.mark.parametrize("size", [(301, 203), (203, 301), (64, 64), (33, 50), (400, 40)])
@pytest.mark.parametrize("policy", POLICIES)
def test_images_read_at_their_resized_size_give_the_pixels_of_whole_ones(tmp_path: Path, policy: str, size):
    shaded(size).save(tmp_path / "x.png")
    whole, whole_grid, read, read_grid = prepared(policy, tmp_path / "x.png")
    assert torch.equal(whole_grid, read_grid)
    assert torch.equal(whole, read)


@pytest.mark.parametrize("size", [(301, 203), (203, 301), (1024, 1024), (999, 222)])
@pytest.mark.parametrize("policy", POLICIES)
def test_large_jpegs_give_nearly_the_pixels_of_whole_ones_and_the_same_tokens(tmp_path: Path, policy: str, size):
    shaded(size).save(tmp_path / "x.jpg", quality=95)
    whole, whole_grid, read, read_grid = prepared(policy, tmp_path / "x.jpg")
    assert torch.equal(whole_grid, read_grid)
    assert whole.shape == read.shape
    # Half a level of 255, in values normalized by 0.5.
    assert (whole - read).abs().mean() < 0.5 / 127.5

"""The custom tower behind the data pipeline: counts from headers, batches of many sizes, a loss."""

from pathlib import Path

import pytest
import torch
from transformers import ProcessorMixin

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.collators import DataCollatorForSupervisedDataset, FlattenedDataCollatorForSupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.model.forward import hidden_states
from qwenvl.vision import EncoderOptions
from qwenvl.vision.tower import grids_of
from tests.vision.small_encoders import swap, with_encoder

TOWERS = {
    "one size": with_encoder("rad_dino"),
    "official pixels": with_encoder("dinov2", input_mode="qwen"),
    "prefix tokens": with_encoder("clip", options=EncoderOptions(keep_prefix_tokens=True)),
    "native aspect": with_encoder("siglip2#naflex"),
    "native aspect, official pixels": with_encoder("siglip2#naflex", input_mode="qwen"),
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

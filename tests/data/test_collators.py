"""Batches: packed samples give the logits of separate ones, and every batch holds what all processes must compute."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from qwenvl.data.annotations import BadSample, Record
from qwenvl.data.collators import (
    DataCollatorForSupervisedDataset,
    FlattenedDataCollatorForSupervisedDataset,
    Sample,
)
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.model.forward import hidden_states

BAD = BadSample("test.json", "row 4", "/gone.png", "no such file")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, standin: Path) -> PreTrainedModel:
    """Return the stand-in with the attention backend under test, without a cache."""
    model = AutoModelForImageTextToText.from_pretrained(standin, attn_implementation=request.param)
    model.config.text_config.use_cache = False
    return model.eval()


@pytest.fixture(scope="module")
def encoder(processor: ProcessorMixin) -> RecordEncoder:
    return RecordEncoder(processor)


@pytest.fixture(scope="module")
def samples(encoder: RecordEncoder, every_kind: dict[str, Record]) -> list[Sample]:
    """Return samples of every kind as the dataset gives them."""
    return [
        encoder.encode(record) | {"index": index, "is_padding": False}
        for index, record in enumerate(every_kind.values())
    ]


@pytest.fixture(scope="module")
def flatten(encoder: RecordEncoder) -> FlattenedDataCollatorForSupervisedDataset:
    return FlattenedDataCollatorForSupervisedDataset(encoder.blank_samples(), placeholders=encoder.placeholders)


@pytest.fixture(scope="module")
def pad(encoder: RecordEncoder, processor: ProcessorMixin) -> DataCollatorForSupervisedDataset:
    return DataCollatorForSupervisedDataset(
        encoder.blank_samples(), placeholders=encoder.placeholders, pad_token_id=processor.tokenizer.pad_token_id
    )


@torch.no_grad()
def kept_logits(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    """Return the logits of the positions that predict a supervised token, (T, V)."""
    return logits_of(model, batch)


def logits_of(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    """Return the logits of the supervised positions, (T, V), by the forward pass of training."""
    inputs = {key: value for key, value in batch.items() if key not in ("meta", "supervised_rows", "targets")}
    return model.lm_head(hidden_states(model.model, **inputs).flatten(0, 1)[batch["supervised_rows"]])


def text_samples(*lengths: int) -> list[Sample]:
    """Return samples of so many tokens, the second half of each supervised."""
    made = []
    for index, length in enumerate(lengths):
        ids = torch.arange(length) + 100 * index
        labels = ids.masked_fill(torch.arange(length) < length // 2, IGNORE_INDEX)
        positions = torch.arange(length).expand(3, -1)
        made.append(
            {"input_ids": ids, "labels": labels, "position_ids": positions, "index": index, "is_padding": False}
        )
    return made


@pytest.mark.parametrize("collate", ["flatten", "pad"])
def test_joined_samples_give_the_logits_of_separate_ones(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    every_kind: dict[str, Record],
    samples: list[Sample],
    collate: str,
    request: pytest.FixtureRequest,
):
    collator = request.getfixturevalue(collate)
    joined = kept_logits(model, collator(samples))
    separate = []
    for sample in samples:
        # As the model computes positions and boundaries itself, without any of ours.
        inputs = {"input_ids": sample["input_ids"][None], "attention_mask": torch.ones(1, len(sample["input_ids"]))}
        inputs |= {key: value for key, value in sample.items() if "pixel" in key or "grid" in key}
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == processor.image_token_id) + 2 * (ids == processor.video_token_id)
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        separate.append(logits[:-1][sample["labels"][1:] != IGNORE_INDEX])
    torch.testing.assert_close(joined, torch.cat(separate), rtol=0, atol=1e-5)


def test_logits_are_kept_for_exactly_the_supervised_tokens_and_never_across_samples(
    flatten: FlattenedDataCollatorForSupervisedDataset, pad: DataCollatorForSupervisedDataset
):
    samples = text_samples(4, 2, 6)
    samples[1]["labels"] = samples[1]["input_ids"].clone()  # supervised from its first token on, which nothing predicts
    flat = flatten(samples)
    assert flat["supervised_rows"].tolist() == [1, 2, 4, 8, 9, 10]
    assert flat["targets"].tolist() == [2, 3, 101, 203, 204, 205]
    rows = pad(samples)  # three rows of six tokens
    assert rows["supervised_rows"].tolist() == [1, 2, 6, 14, 15, 16]
    assert rows["targets"].tolist() == flat["targets"].tolist()


def test_a_flattened_row_restarts_positions_and_marks_boundaries(
    flatten: FlattenedDataCollatorForSupervisedDataset, samples: list[Sample]
):
    chosen = [samples[3], samples[0], samples[6]]
    batch = replace(flatten, varlen=True)(chosen)
    lengths = [len(sample["input_ids"]) for sample in chosen]
    assert batch["text_cu_seqlens"].tolist() == [0, lengths[0], lengths[0] + lengths[1], sum(lengths)]
    assert batch["text_cu_seqlens"].dtype == torch.int32
    assert batch["text_max_seqlen"] == max(lengths)
    assert batch["position_ids"].shape == (4, 1, sum(lengths))
    assert batch["position_ids"][0, 0].tolist() == [place for length in lengths for place in range(length)]
    assert torch.equal(batch["position_ids"][1:, 0], torch.cat([sample["position_ids"] for sample in chosen], dim=1))


def test_a_flattened_row_has_no_mask_and_boundaries_only_where_wanted(
    flatten: FlattenedDataCollatorForSupervisedDataset, samples: list[Sample]
):
    assert not {"attention_mask", "text_cu_seqlens", "text_max_seqlen"} & flatten(samples).keys()


def test_padded_rows_are_masked_on_the_right(pad: DataCollatorForSupervisedDataset):
    batch = pad(text_samples(2, 4))
    assert batch["input_ids"].tolist() == [[0, 1, pad.pad_token_id, pad.pad_token_id], [100, 101, 102, 103]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["targets"].tolist() == [1, 102, 103]
    assert batch["position_ids"].shape == (4, 2, 4)
    assert batch["position_ids"][:, 1].tolist() == [[0, 1, 2, 3]] * 4
    assert batch["meta"].num_padding == 2


def test_media_are_joined_in_the_order_of_their_samples_whatever_their_shape(
    flatten: FlattenedDataCollatorForSupervisedDataset, samples: list[Sample]
):
    batch = flatten(samples)
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert torch.equal(batch[key], torch.cat([sample[key] for sample in samples if key in sample]))
    images = text_samples(3, 3)
    for sample, size in zip(images, (2, 1), strict=True):
        sample |= {"pixel_values": torch.full((size, 3, 5, 5), float(size)), "image_grid_thw": torch.ones(size, 3)}
    assert flatten(images)["pixel_values"].shape == (3, 3, 5, 5)


def test_the_placeholders_of_each_kind_are_found_in_the_flattened_tokens(
    pad: DataCollatorForSupervisedDataset, samples: list[Sample]
):
    batch = replace(pad, layout_of=lambda grids: grids.tolist())(samples)
    for kind, token in pad.placeholders.items():
        assert (batch["input_ids"].flatten()[batch[f"{kind}_rows"]] == token).all()
        assert len(batch[f"{kind}_rows"]) == (batch["input_ids"] == token).sum()
    assert batch["layouts"] == {
        "image": batch["image_grid_thw"].tolist(),
        "video": batch["video_grid_thw"].tolist(),
    }


def test_a_batch_without_media_has_no_media_keys(flatten: FlattenedDataCollatorForSupervisedDataset):
    assert flatten(text_samples(3)).keys() == {"input_ids", "position_ids", "supervised_rows", "targets", "meta"}


def test_a_batch_describes_itself(flatten: FlattenedDataCollatorForSupervisedDataset):
    samples = text_samples(4, 6, 8)
    samples[2] |= {"is_padding": True, "labels": torch.full((8,), IGNORE_INDEX)}
    meta = flatten([samples[0], {"bad": BAD}, samples[1], samples[2]])["meta"]
    assert (meta.indices, meta.num_samples, meta.num_tokens) == ([0, 1], 2, 10)
    assert (meta.num_supervised, meta.num_padding, meta.bad) == (5, 8, [BAD])


@pytest.mark.parametrize("collate", ["flatten", "pad"])
@pytest.mark.parametrize("present", [[], ["image"], ["video"], ["image and video"]])
def test_every_batch_holds_each_required_kind_of_medium(
    samples: list[Sample],
    every_kind: dict[str, Record],
    collate: str,
    present: list[str],
    request: pytest.FixtureRequest,
):
    collator = replace(request.getfixturevalue(collate), required_kinds=("image", "video"))
    chosen = [samples[6]] + [samples[list(every_kind).index(kind)] for kind in present]
    batch = collator(chosen)
    missing = 2 - sum(kind in " ".join(present) for kind in ("image", "video"))
    assert {"pixel_values", "pixel_values_videos"} <= batch.keys()
    assert batch["meta"].num_samples == len(chosen)
    assert batch["meta"].num_supervised == sum(int((sample["labels"] != IGNORE_INDEX).sum()) for sample in chosen)
    if collate == "pad":
        assert len(batch["input_ids"]) == len(chosen) + missing
    else:
        assert (batch["position_ids"][0] == 0).sum() == len(chosen) + missing


@pytest.mark.parametrize("collate", ["flatten", "pad"])
def test_dummies_change_no_logit_and_give_the_tower_a_gradient_of_zero(
    model: PreTrainedModel, samples: list[Sample], collate: str, request: pytest.FixtureRequest
):
    plain = request.getfixturevalue(collate)
    chosen = [samples[6], samples[8]]
    expected = kept_logits(model, plain(chosen))
    batch = replace(plain, required_kinds=("image", "video"))(chosen)
    logits = logits_of(model, batch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    model.zero_grad()
    logits.sum().backward()
    gradients = [parameter.grad for parameter in model.model.visual.merger.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("collate", ["flatten", "pad"])
@pytest.mark.parametrize("required_kinds", [(), ("image",), ("image", "video")])
def test_a_batch_whose_samples_are_all_bad_still_runs_and_weighs_nothing(
    model: PreTrainedModel, collate: str, required_kinds: tuple[str, ...], request: pytest.FixtureRequest
):
    batch = replace(request.getfixturevalue(collate), required_kinds=required_kinds)([{"bad": BAD}, {"bad": BAD}])
    assert kept_logits(model, batch).shape[0] == 0
    meta = batch["meta"]
    assert (meta.num_samples, meta.num_tokens, meta.num_supervised, meta.bad) == (0, 0, 0, [BAD, BAD])


def test_blank_samples_learn_nothing_and_hold_one_medium_of_their_kind(
    encoder: RecordEncoder, make_record: Callable[..., Record]
):
    blanks = encoder.blank_samples()
    assert {kind: ("pixel_values" in blank, "pixel_values_videos" in blank) for kind, blank in blanks.items()} == {
        "text": (False, False),
        "image": (True, False),
        "video": (False, True),
    }
    assert all((blank["labels"] == IGNORE_INDEX).all() for blank in blanks.values())
    assert all(len(blank["input_ids"]) < 40 for blank in blanks.values())

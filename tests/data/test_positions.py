"""Positions: equal to those that the model itself computes, for every kind of sample."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, ProcessorMixin, Qwen3VLModel

from qwenvl.data.annotations import Record
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.positions import MediaTokens, mrope_position_ids

IMAGE, VIDEO = 50, 51
TOKENS = MediaTokens(IMAGE, VIDEO, merge_size=2)


@pytest.fixture(scope="module")
def model(standin: Path) -> Qwen3VLModel:
    """Return the stand-in without its head."""
    return AutoModelForImageTextToText.from_pretrained(standin).model


def models_positions(
    model: Qwen3VLModel, sample: dict[str, torch.Tensor], image_id: int, video_id: int
) -> torch.Tensor:
    """Return the positions (3, L) that the model gives to one sample."""
    ids = sample["input_ids"][None]
    positions, _ = model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == image_id) + 2 * (ids == video_id),
        image_grid_thw=sample.get("image_grid_thw"),
        video_grid_thw=sample.get("video_grid_thw"),
    )
    return positions[:, 0]


def test_positions_of_encoded_records_are_those_of_the_model(
    model: Qwen3VLModel, processor: ProcessorMixin, every_kind: dict[str, Record]
):
    encoder = RecordEncoder(processor)
    for kind, record in every_kind.items():
        sample = encoder.encode(record)
        expected = models_positions(model, sample, processor.image_token_id, processor.video_token_id)
        assert torch.equal(sample["position_ids"], expected), kind


def random_sample(seed: int, merge_size: int) -> dict[str, torch.Tensor]:
    """Return the ids and grids of a sample with text, images and videos in a random order."""
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    ids: list[int] = []
    grids: dict[str, list[list[int]]] = {"image_grid_thw": [], "video_grid_thw": []}
    for _ in range(draw(1, 6)):
        ids += [1] * draw(1, 5)
        height, width, frames = draw(1, 6), draw(1, 6), draw(1, 4)
        if draw(0, 2):
            grids["image_grid_thw"].append([1, height * merge_size, width * merge_size])
            ids += [IMAGE] * (height * width)
        else:
            grids["video_grid_thw"].append([frames, height * merge_size, width * merge_size])
            ids += ([2, 3] + [VIDEO] * (height * width)) * frames
    ids += [1] * draw(0, 3)
    return {"input_ids": torch.tensor(ids)} | {key: torch.tensor(rows) for key, rows in grids.items() if rows}


@pytest.mark.parametrize("merge_size", [1, 2])
def test_positions_of_any_mixture_are_those_of_the_model(
    model: Qwen3VLModel, monkeypatch: pytest.MonkeyPatch, merge_size: int
):
    monkeypatch.setattr(model.config.vision_config, "spatial_merge_size", merge_size)
    tokens = MediaTokens(IMAGE, VIDEO, merge_size)
    for seed in range(100):
        sample = random_sample(seed, merge_size)
        grids = sample.get("image_grid_thw"), sample.get("video_grid_thw")
        positions = mrope_position_ids(sample["input_ids"], tokens, *grids)
        assert torch.equal(positions, models_positions(model, sample, IMAGE, VIDEO)), seed


def test_text_alone_counts_up_in_all_rows():
    assert mrope_position_ids(torch.tensor([1, 2, 3]), TOKENS).tolist() == [[0, 1, 2]] * 3


def test_images_without_text_between_them_keep_their_own_grids():
    grids = torch.tensor([[1, 2, 4], [1, 2, 2]])
    positions = mrope_position_ids(torch.tensor([IMAGE] * 3), TOKENS, grids)
    assert positions.tolist() == [[0, 0, 2], [0, 0, 2], [0, 1, 2]]


@pytest.mark.parametrize("grids", [None, torch.tensor([[1, 4, 4]])])
def test_grids_that_do_not_fit_the_placeholders_are_an_error(grids: torch.Tensor | None):
    with pytest.raises(ValueError, match="3 placeholder tokens"):
        mrope_position_ids(torch.tensor([1, IMAGE, IMAGE, IMAGE]), TOKENS, grids)

"""The data of a run: from annotation files to planned batches, with every unusable sample named."""

import copy
import json
import logging
import pickle
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from qwenvl.data.arguments import DataArguments
from qwenvl.data.collators import DataCollatorForSupervisedDataset, FlattenedDataCollatorForSupervisedDataset
from qwenvl.data.data_processor import DataModule, make_supervised_data_module
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.data.packing import SampleRef
from qwenvl.data.summary import summarize
from qwenvl.errors import UserError

DATA_FLAGS = {
    "max_pixels": 128 * 128,
    "min_pixels": 32 * 32,
    "video_fps": 2.0,
    "video_max_frames": 4,
    "video_min_frames": 4,
    "video_max_pixels": 4 * 64 * 64,
    "video_min_pixels": 4 * 32 * 32,
    "max_bad_samples": 5,
}
TRAINING_FLAGS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 3,
    "seed": 5,
    "data_seed": None,
    "world_size": 1,
    "process_index": 0,
    "local_process_index": 0,
}


def conversation(question: str, answer: str, **media: Any) -> dict:
    return {**media, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Return a folder with images of several sizes that the test may change."""
    for number in range(4):
        Image.new("RGB", (32 + 32 * number, 64), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def load(own_processor: ProcessorMixin, image_folder: Path) -> Callable[..., DataModule]:
    """Return a function that makes the data module of the given rows with the given flags."""

    def make(rows: list | None = None, **flags: Any) -> DataModule:
        path = image_folder / "train.json"
        path.write_text(json.dumps(rows if rows is not None else mixed_rows()))
        known = {field.name for field in fields(DataArguments)}
        data_flags = DATA_FLAGS | {key: flags.pop(key) for key in [*flags] if key in known}
        data_args = DataArguments(dataset_use=str(path), media_cache_dir=str(image_folder), **data_flags)
        varlen, processor = flags.pop("varlen", False), flags.pop("processor", own_processor)
        training_args = SimpleNamespace(
            main_process_first=lambda local=True, desc="": nullcontext(), **TRAINING_FLAGS | flags
        )
        return make_supervised_data_module(processor, data_args, training_args, 256, varlen=varlen)

    return make


def mixed_rows() -> list[dict]:
    """Return 13 records: with an image, with two, and of text alone."""
    rows = [conversation("<image>What?", f"It is {'so ' * n}red.", image=f"{n % 4}.png") for n in range(7)]
    rows += [conversation("<image><image>Both?", "Yes. " * n, image=["0.png", "3.png"]) for n in (1, 9)]
    return rows + [conversation("Why?", "Because " * n + ".") for n in (1, 3, 20, 2)]


def batches(data: DataModule, workers: int = 0) -> list[dict[str, Any]]:
    """Return the batches of one pass."""
    loader = DataLoader(
        data.train_dataset, batch_sampler=data.train_sampler, collate_fn=data.data_collator, num_workers=workers
    )
    return list(loader)


def assert_equal(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Compare batches bit for bit."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


@pytest.mark.parametrize(
    ("mode", "collator"),
    [
        ({}, DataCollatorForSupervisedDataset),
        ({"data_flatten": True}, FlattenedDataCollatorForSupervisedDataset),
        ({"data_packing": True}, FlattenedDataCollatorForSupervisedDataset),
    ],
    ids=["padded", "flattened", "packed"],
)
def test_each_sample_comes_once_a_pass_with_the_length_that_was_counted(
    load: Callable[..., DataModule], mode: dict, collator: type
):
    data = load(**mode)
    assert isinstance(data.data_collator, collator)
    metas = [batch["meta"] for batch in batches(data)]
    assert sorted(index for meta in metas for index in meta.indices) == list(range(13))
    assert sum(meta.num_tokens for meta in metas) == data.train_dataset.lengths.sum()
    assert sum(meta.num_supervised for meta in metas) == data.train_dataset.counts.supervised.sum()


@pytest.mark.parametrize("mode", [{}, {"data_packing": True, "varlen": True}], ids=["padded", "packed"])
def test_batches_are_the_same_whatever_the_number_of_workers_and_again_after_a_restart(
    load: Callable[..., DataModule], mode: dict
):
    first = batches(load(**mode))
    assert_equal(batches(load(**mode), workers=2), first)
    assert [batch["meta"].indices for batch in batches(load(**mode, data_seed=6))] != [
        batch["meta"].indices for batch in first
    ]


def test_packs_are_rows_up_to_the_maximum_length_with_boundaries_where_wanted(load: Callable[..., DataModule]):
    data = load(data_packing=True, per_device_train_batch_size=1, varlen=True)
    rows = batches(data)
    assert len(rows) == len(data.train_dataset.packs) < 13
    assert all(row["input_ids"].shape[1] <= 256 for row in rows)
    assert all(len(row["text_cu_seqlens"]) == row["meta"].num_samples + 1 for row in rows)


@pytest.mark.parametrize("packing", [False, True])
def test_an_optimizer_step_sees_the_same_samples_on_two_processes_and_with_accumulation(
    load: Callable[..., DataModule], packing: bool
):
    def steps(batch_size: int, processes: int, accumulation: int) -> list[Counter]:
        flags = {"data_packing": packing, "per_device_train_batch_size": batch_size, "world_size": processes}
        ranks = [batches(load(process_index=rank, **flags)) for rank in range(processes)]
        micro = [Counter(index for batch in row for index in batch["meta"].indices) for row in zip(*ranks, strict=True)]
        return [sum(micro[start : start + accumulation], Counter()) for start in range(0, len(micro), accumulation)]

    expected = steps(4, 1, 1)
    assert sum(expected, Counter()) == Counter(range(13))
    assert steps(1, 1, 4) == expected
    assert steps(2, 2, 1) == expected
    assert steps(1, 2, 2) == expected


def test_pixel_limits_act_on_the_lengths(load: Callable[..., DataModule]):
    large, small = load().train_dataset, load(max_pixels=32 * 32).train_dataset
    assert (large.lengths[:9] > small.lengths[:9]).any() and (large.lengths[9:] == small.lengths[9:]).all()


def test_a_filler_learns_nothing_and_is_otherwise_the_sample(load: Callable[..., DataModule]):
    dataset = load().train_dataset
    real, filler = dataset[SampleRef(1)], dataset[SampleRef(1, is_padding=True)]
    assert (real["labels"] != IGNORE_INDEX).any() and not (filler["labels"] != IGNORE_INDEX).any()
    assert torch.equal(real["input_ids"], filler["input_ids"])
    assert torch.equal(real["pixel_values"], filler["pixel_values"])


def test_only_several_processes_ask_for_the_kinds_of_media_that_the_data_have(
    load: Callable[..., DataModule], media: Path
):
    assert load().data_collator.required_kinds == []
    assert load(world_size=2).data_collator.required_kinds == ["image"]
    rows = mixed_rows() + [conversation("<video>What?", "A ball.", video=str(media / "clip.mp4"))]
    assert load(rows, world_size=2).data_collator.required_kinds == ["image", "video"]
    assert load(rows[9:12], world_size=2).data_collator.required_kinds == []


def test_evaluation_samples_come_in_order_and_their_media_count_too(
    load: Callable[..., DataModule], image_folder: Path
):
    (image_folder / "valid.json").write_text(json.dumps(mixed_rows()[:4]))
    data = load(mixed_rows()[9:], eval_dataset_use=str(image_folder / "valid.json"), world_size=2)
    assert [[draw.index for draw in batch] for batch in data.eval_sampler.all_batches().__next__()] == [[3, 0], [2, 1]]
    assert len(data.eval_sampler) == 1 and len(data.eval_dataset) == 4
    assert data.data_collator.required_kinds == ["image"]
    assert load().eval_dataset is None and load().eval_sampler is None


@pytest.mark.parametrize("mode", [{}, {"data_packing": True}])
def test_a_sample_over_the_maximum_length_is_named_with_its_length(load: Callable[..., DataModule], mode: dict):
    rows = mixed_rows()
    rows[4] = conversation("<image>What?", "word " * 400, image="1.png")
    with pytest.raises(UserError, match=r"train.json row 4: \d+ tokens are more than --model_max_length 256"):
        load(rows, **mode)


@pytest.mark.parametrize("mode", [{}, {"data_packing": True}])
def test_under_skip_unusable_samples_are_left_out_and_counted(
    load: Callable[..., DataModule], image_folder: Path, mode: dict
):
    rows = mixed_rows()
    rows[4] = conversation("<image>What?", "word " * 400, image="1.png")
    (image_folder / "broken.png").write_bytes(b"no image")
    rows[2] = conversation("<image>What?", "That.", image="broken.png")
    data = load(rows, bad_sample_policy="skip", **mode)
    assert [bad.full_location.rpartition(" ")[2] for bad in data.bad_samples.samples] == ["2", "4"]
    assert [record.row for record in data.train_dataset.records] == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert sorted(index for pack in data.train_dataset.packs for index in pack) == list(range(11))
    assert sum(batch["meta"].num_samples for batch in batches(data)) == 11


def test_a_special_token_in_a_text_is_refused_before_training(load: Callable[..., DataModule]):
    rows = mixed_rows()
    rows[4] = conversation("<image>Where?", "<|box_start|>(1,2),(3,4)<|box_end|>", image="1.png")
    with pytest.raises(
        UserError, match=r"train.json row 4: turn 1 contains <\|box_start\|>, a special token of the model"
    ):
        load(rows)


def test_thoughts_of_earlier_answers_become_samples_of_their_own(
    load: Callable[..., DataModule], thinking_processor: ProcessorMixin, caplog: pytest.LogCaptureFixture
):
    rows = mixed_rows()
    rows[9]["conversations"] = [
        {"from": role, "value": text}
        for number in (1, 2)
        for role, text in (("human", f"Q{number}"), ("gpt", f"<think>R{number}</think>A{number}"))
    ]
    with caplog.at_level(logging.INFO, "qwenvl"):
        data = load(rows, processor=copy.deepcopy(thinking_processor))
    assert len(data.train_dataset) == 14 == sum(batch["meta"].num_samples for batch in batches(data))
    assert "1 records have thoughts in earlier answers" in caplog.text
    assert "12 of 14 answers have no thought" in caplog.text
    assert len(load(rows, processor=copy.deepcopy(thinking_processor), thinking_turns="last").train_dataset) == 13


def test_a_broken_image_is_named_before_training(load: Callable[..., DataModule], image_folder: Path):
    (image_folder / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train.json row 2: .*2.png: not an image"):
        load()


def test_data_without_a_usable_sample_are_refused(load: Callable[..., DataModule]):
    rows = [conversation("Why?", "word " * 400)]
    with pytest.raises(UserError, match="none of the 1 records is usable"):
        load(rows, bad_sample_policy="skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_during_training_is_named_in_one_line(
    load: Callable[..., DataModule], image_folder: Path, workers: int
):
    data = load()
    (image_folder / "2.png").unlink()
    bad = [bad for batch in batches(data, workers) for bad in batch["meta"].bad]
    assert {sample.location for sample in bad} == {"row 2", "row 6"}
    assert {sample.path for sample in bad} == {str(image_folder / "2.png")}
    assert {sample.reason for sample in bad} == {"no such image file; correct the path"}
    with pytest.raises(UserError, match=r"^\S*train.json row [26]: \S*2.png: no such image file") as raised:
        data.bad_samples.report(bad[0])
    assert "\n" not in str(raised.value)


def test_under_skip_a_file_that_vanishes_is_handed_on_as_bad_and_the_batch_goes_on(
    load: Callable[..., DataModule], image_folder: Path
):
    data = load(bad_sample_policy="skip")
    (image_folder / "2.png").unlink()
    metas = [batch["meta"] for batch in batches(data, workers=1)]
    assert sorted(index for meta in metas for index in meta.indices) == [0, 1, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert sorted(bad.full_location.rpartition(" ")[2] for meta in metas for bad in meta.bad) == ["2", "6"]


def test_an_image_that_changed_its_size_since_it_was_counted_is_refused(
    load: Callable[..., DataModule], image_folder: Path
):
    data = load()
    Image.new("RGB", (128, 128)).save(image_folder / "0.png")
    bad = data.train_dataset[SampleRef(0)]["bad"]
    assert (bad.location, bad.path) == ("row 0", None)
    assert re.match(r"\d+ tokens, but \d+ when the run began", bad.reason)


def test_packs_from_the_file_are_kept_and_single_records_are_packed(load: Callable[..., DataModule]):
    rows = mixed_rows()
    data = load([[rows[0], rows[10]], rows[1], [rows[2], rows[3], rows[4]], *rows[5:10]], data_packing=True)
    packs = [[data.train_dataset.records[index].turns[1].text for index in pack] for pack in data.train_dataset.packs]
    assert packs[0] == ["It is red.", "Because Because Because ."]
    assert packs[1] == ["It is so so red.", "It is so so so red.", "It is so so so so red."]
    assert sorted(index for pack in data.train_dataset.packs for index in pack) == list(range(11))
    assert len(packs) < 2 + 6


def test_a_pack_of_the_file_loses_a_skipped_record_and_stays_together(load: Callable[..., DataModule]):
    rows = mixed_rows()
    long = conversation("Why?", "word " * 400)
    data = load([[rows[0], long, rows[1]], [long], rows[2]], data_packing=True, bad_sample_policy="skip")
    assert data.train_dataset.packs == [[0, 1], [2]]
    assert data.bad_samples.count == 2


def test_a_pack_over_the_maximum_length_is_refused(load: Callable[..., DataModule]):
    with pytest.raises(UserError, match=r"row 0 item 0: its pack has \d+ tokens, expected at most --model_max_length"):
        load([mixed_rows()], data_packing=True)


def test_packs_without_the_packing_flag_are_refused(load: Callable[..., DataModule]):
    with pytest.raises(UserError, match="expected --data_packing True"):
        load([mixed_rows()[:2]])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("mode", [{}, {"data_packing": True}], ids=["padded", "packed"])
def test_the_summary_is_what_a_pass_then_shows(load: Callable[..., DataModule], mode: dict, processes: int):
    rows = mixed_rows()[::-1]
    data = load(rows, **mode, world_size=processes)
    summary = summarize(data.train_dataset, data.train_sampler, padded=not mode)
    # The dummies of batches without an image are left out, as the summary says.
    passes = [load(rows, **mode, world_size=processes, process_index=rank) for rank in range(processes)]
    for data in passes:
        data.data_collator.required_kinds = []
    made = [batch for data in passes for batch in batches(data)]
    metas = [batch["meta"] for batch in made]
    tokens, padding = sum(meta.num_tokens for meta in metas), sum(meta.num_padding for meta in metas)
    assert (summary.num_samples, summary.num_tokens) == (13, tokens)
    assert summary.num_supervised == sum(meta.num_supervised for meta in metas)
    assert summary.micro_batches == len(made) / processes
    assert summary.padding_share == pytest.approx(padding / (padding + tokens))
    assert summary.max_tokens == max(batch["input_ids"].numel() for batch in made)
    assert summary.most_supervised == max(meta.num_supervised for meta in metas)
    assert summary.most_patches == max(len(batch.get("pixel_values", [])) for batch in made)


def test_an_image_over_the_limit_is_refused_and_read_where_allowed_whatever_the_cache_knows(load, monkeypatch):
    rows = [conversation("<image>?", "Wide.", image="3.png")]
    # Pillow has a limit of its own.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for allowed in (128 * 64, 128 * 64 + 1):
        monkeypatch.setattr(DataArguments, "max_image_pixels", allowed)
        dataset = load(rows).train_dataset
        assert "pixel_values" in dataset[SampleRef(0)]
    monkeypatch.setattr(DataArguments, "max_image_pixels", 128 * 64 - 1)
    with pytest.raises(UserError, match="3.png: 128 x 64 pixels are more than the limit of 8191"):
        load(rows)


def test_a_dicom_whose_decoder_panics_is_a_bad_sample_that_a_worker_can_tell(load, image_folder: Path):
    pytest.importorskip("pydicom")
    from tests.data.dicom_files import rle_dicom

    rle_dicom(image_folder / "broken.dcm", runs=33)
    rows = [conversation("<image>?", "A chest.", image="broken.dcm")]
    bad = load(rows, bad_sample_policy="skip").train_dataset[SampleRef(0)]["bad"]
    assert f"{image_folder / 'broken.dcm'}: cannot read the image (the pixel data cannot be decoded" in str(bad)
    assert pickle.loads(pickle.dumps(bad)) == bad

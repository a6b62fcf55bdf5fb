"""Prepared data on disk: a later start tells and trains the same, and sees whatever has changed."""

import copy
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from qwenvl.data import data_processor, dataset_cache
from qwenvl.data.arguments import DataArguments
from qwenvl.data.data_processor import DataModule, make_supervised_data_module
from qwenvl.data.packing import SampleRef
from qwenvl.data.record_table import RecordTable
from qwenvl.errors import UserError

DATA_FLAGS = {
    "max_pixels": 128 * 128,
    "min_pixels": 32 * 32,
    "video_fps": 2.0,
    "video_max_frames": 4,
    "video_min_frames": 4,
    "video_max_pixels": 4 * 64 * 64,
    "video_min_pixels": 4 * 32 * 32,
    "bad_sample_policy": "skip",
    "max_bad_samples": 5,
}
TRAINING_FLAGS = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "seed": 5,
    "data_seed": None,
    "world_size": 1,
    "process_index": 0,
    "local_process_index": 0,
}


def row(number: int, **fields: Any) -> dict[str, Any]:
    """Return a record with an image of its own."""
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": f"It is {'so ' * number}red."}]
    return {"conversations": turns, "image": f"{number}.png"} | fields


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with data of twelve records, two of them bad, that are worth keeping."""
    monkeypatch.setattr(data_processor, "WORTH_BYTES", 0)
    for number in range(12):
        Image.new("RGB", (64 + 32 * (number % 3), 64)).save(tmp_path / f"{number}.png")
    rows = [row(number) for number in range(12)]
    rows[3]["image"] = "gone.png"
    rows[7]["conversations"][1]["value"] = "word " * 400
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def start(
    folder: Path, thinking_processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[DataModule, bool]]:
    """Return a function that makes a run's data and tells whether an annotation file was read for that."""
    reads: list[str] = []
    load_datasets = data_processor.load_datasets
    monkeypatch.setattr(
        data_processor, "load_datasets", lambda use, *rest: reads.append(use) or load_datasets(use, *rest)
    )

    def make(**flags: Any) -> tuple[DataModule, bool]:
        reads.clear()
        given = DATA_FLAGS | {"dataset_use": str(folder / "train.json"), "media_cache_dir": str(folder / "cache")}
        known = {field.name for field in fields(DataArguments)}
        data_args = DataArguments(**given | {key: flags.pop(key) for key in [*flags] if key in known})
        max_length = flags.pop("model_max_length", 256)
        training_args = SimpleNamespace(main_process_first=lambda **_: nullcontext(), **TRAINING_FLAGS | flags)
        processor = copy.deepcopy(thinking_processor)
        return make_supervised_data_module(processor, data_args, training_args, max_length), bool(reads)

    return make


def entries(folder: Path) -> list[Path]:
    """Return what the cache holds."""
    return [*(folder / "cache" / "datasets").iterdir()]


@pytest.mark.parametrize("packing", [False, True])
def test_a_later_start_has_the_same_data_and_tells_the_same(
    start: Callable[..., tuple[DataModule, bool]],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
):
    told, data = [], []
    for reads in (True, False):
        caplog.clear()
        with caplog.at_level(logging.INFO, "qwenvl"):
            made, has_read = start(data_packing=packing)
        assert has_read == reads
        data.append(made)
        told.append(sorted(entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING))
    first, second = data
    assert told[0] == told[1] and len(told[0]) == 3
    assert "answers have no thought" in "".join(told[0])
    assert first.bad_samples.samples == second.bad_samples.samples and second.bad_samples.count == 2
    assert isinstance(second.train_dataset.records, RecordTable)
    assert [*first.train_dataset.records] == [*second.train_dataset.records]
    for column in ("total", "supervised", "patches"):
        assert np.array_equal(getattr(first.train_dataset.counts, column), getattr(second.train_dataset.counts, column))
    assert (
        first.train_dataset.digest == second.train_dataset.digest == (entries(folder)[0] / "samples.sha256").read_text()
    )
    monkeypatch.setattr(data_processor, "WORTH_BYTES", 10**6)
    in_memory, _ = start(data_packing=packing)
    assert isinstance(in_memory.train_dataset.records, list)
    assert in_memory.train_dataset.digest == second.train_dataset.digest
    assert first.train_dataset.packs == second.train_dataset.packs
    assert [*first.train_sampler] == [*second.train_sampler]
    assert second.train_dataset.media_kinds() == {"image"}


def test_bad_samples_that_are_kept_end_a_run_that_allows_none(start: Callable[..., tuple[DataModule, bool]]):
    start()
    with pytest.raises(UserError, match="row 3: .*gone.png: no such file"):
        start(bad_sample_policy="error")
    with pytest.raises(UserError, match="2 bad samples, more than --max_bad_samples 1"):
        start(max_bad_samples=1)


def changed_answer(folder: Path) -> None:
    text = (folder / "train.json").read_text()
    (folder / "train.json").write_text(text.replace("so red", "so RED"))


def changed_image(folder: Path) -> None:
    Image.new("RGB", (128, 128)).save(folder / "0.png")


def found_image(folder: Path) -> None:
    shutil.copy(folder / "0.png", folder / "gone.png")


def lost_image(folder: Path) -> None:
    (folder / "1.png").unlink()


@pytest.mark.parametrize("change", [changed_answer, changed_image, found_image, lost_image])
def test_whatever_has_changed_is_read_again(
    start: Callable[..., tuple[DataModule, bool]], folder: Path, change: Callable[[Path], None]
):
    start()
    change(folder)
    data, has_read = start()
    assert has_read
    shutil.rmtree(folder / "cache")
    fresh, _ = start()
    assert [*data.train_dataset.records] == [*fresh.train_dataset.records]
    assert np.array_equal(data.train_dataset.lengths, fresh.train_dataset.lengths)
    assert data.bad_samples.samples == fresh.bad_samples.samples


@pytest.mark.parametrize(
    "flags",
    [{"max_pixels": 64 * 64}, {"model_max_length": 200}, {"thinking_turns": "last"}, {"data_packing": True}],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_that_decide_the_data_have_entries_of_their_own(
    start: Callable[..., tuple[DataModule, bool]], folder: Path, flags: dict[str, Any]
):
    start()
    assert start(**flags)[1] and len(entries(folder)) == 2
    assert not start()[1] and not start(**flags)[1]


def test_counts_that_no_longer_fit_are_found_by_trying_some(
    start: Callable[..., tuple[DataModule, bool]], folder: Path
):
    start()
    (entry,) = entries(folder)
    np.save(entry / "total.npy", np.load(entry / "total.npy") + 1)
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps(meta | {"digest": dataset_cache._digest_entry(entry)}))
    data, has_read = start()
    assert has_read and len(data.train_dataset[SampleRef(0)]["input_ids"]) == data.train_dataset.lengths[0]
    assert not start()[1]


def flip(content: bytes) -> bytes:
    """Return the content with one bit changed."""
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("meta.json", lambda content: b""),
        ("meta.json", lambda content: b"[]"),
        ("meta.json", lambda content: b"{}"),
        ("meta.json", None),
        ("records.jsonl", flip),
        ("records.jsonl", None),
        ("total.npy", lambda content: content[:-8]),
        ("stamps.npy", flip),
    ],
)
def test_a_damaged_entry_is_made_again(
    start: Callable[..., tuple[DataModule, bool]],
    folder: Path,
    name: str,
    damage: Callable[[bytes], bytes] | None,
):
    first, _ = start()
    (entry,) = entries(folder)
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    if damage is not None:
        (entry / name).write_bytes(damage(content))
    data, has_read = start()
    assert has_read
    assert [*data.train_dataset.records] == [*first.train_dataset.records]
    assert not start()[1]


def test_the_other_processes_of_a_node_take_what_the_first_has_kept(
    start: Callable[..., tuple[DataModule, bool]], folder: Path
):
    start(world_size=2)
    changed_image(folder)  # only the first looks at the media
    assert not start(world_size=2, process_index=1, local_process_index=1)[1]


def test_a_folder_that_cannot_be_written_costs_the_keeping_and_nothing_else(
    start: Callable[..., tuple[DataModule, bool]], folder: Path, caplog: pytest.LogCaptureFixture
):
    (folder / "cache").write_text("no folder")
    data, has_read = start()
    assert has_read and len(data.train_dataset) == 10
    assert "cannot write the prepared data" in caplog.text


def test_old_entries_and_what_killed_runs_left_are_removed(start: Callable[..., tuple[DataModule, bool]], folder: Path):
    start()
    (old,) = entries(folder)
    os.utime(old / "meta.json", (0, 0))
    left = old.with_name("x.unfinished")
    left.mkdir()
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    start(max_pixels=64 * 64)
    assert old not in entries(folder) and left not in entries(folder) and len(entries(folder)) == 1


def test_small_data_are_read_by_each_run(
    start: Callable[..., tuple[DataModule, bool]], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data_processor, "WORTH_BYTES", 10**6)
    assert start()[1] and start()[1]
    assert not (folder / "cache" / "datasets").exists()

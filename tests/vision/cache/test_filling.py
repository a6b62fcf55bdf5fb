"""Filling the cache of features: what is computed, by whom, and what is left out."""

import re
import sys
from pathlib import Path

import pytest
import torch

from qwenvl.data.media.images import load_image
from qwenvl.errors import UserError
from qwenvl.vision import TowerOptions
from qwenvl.vision.cache import filling
from qwenvl.vision.cache.filling import Work, hash_files
from qwenvl.vision.cache.store import FeatureCache, estimate_bytes
from tests.vision.cache.filled_cache import OWN_ENCODER, SIZES, fill, filled
from tests.vision.small_encoders import random_image, swap, with_encoder


def test_features_are_computed_in_the_precision_of_the_training(standin, images, tmp_path, own_encoder):
    own_encoder.write_text(OWN_ENCODER.replace("* 1.0", "@ torch.full((3, 3), 0.1)"))
    model, processor = swap(standin, TowerOptions(f"{own_encoder}:Own", merger="norm_linear"))
    cache = filled(model, processor, images, tmp_path / "cache", torch.bfloat16)
    inputs = processor.image_processor([load_image(images[0])], return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state
    assert torch.equal(cache.load(images[0]).flatten(0, 1), expected.float())


def test_second_run_computes_nothing(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    filled(model, processor, images, tmp_path / "cache")
    again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    assert again.missing(images) == {}
    model.model.visual.encoder.forward = None
    assert fill(again, model, processor, images) == 0


def test_an_encoder_without_parameters_is_cached(standin, images, tmp_path, own_encoder):
    model, processor = swap(standin, TowerOptions(f"{own_encoder}:Own"))
    cache = filled(model, processor, images, tmp_path / "cache")
    estimate = estimate_bytes(SIZES, model.model.visual, processor.image_processor)
    assert estimate == sum(cache.load(path).nbytes for path in images)


def test_several_processes_share_the_work(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    for i in range(3, 12):
        random_image(40, 40, seed=i).save(tmp_path / f"{i}.png")
    images = [str(tmp_path / f"{i}.png") for i in range(12)]
    caches = [FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor) for _ in range(2)]
    added = [fill(cache, model, processor, images, rank=rank, world_size=2) for rank, cache in enumerate(caches)]
    caches[0].reload()
    assert sum(added) == 12 and all(added) and caches[0].missing(images) == {}


def test_two_runs_with_different_sight_of_the_folder_leave_nothing_out(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    early, late = (FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor) for _ in range(2))
    fill(early, model, processor, images, rank=0, world_size=2)
    late.reload()
    fill(late, model, processor, images, rank=1, world_size=2)
    late.reload()
    assert late.missing(images) == {}


def test_a_killed_filling_goes_on_after_its_finished_shards(standin, images, tmp_path, monkeypatch):
    model, processor = swap(standin, with_encoder("rad_dino"))
    monkeypatch.setattr(filling, "SHARD_BYTES", 1)
    cache = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    Path(images[2]).write_bytes(b"broken")
    hash_files(cache, images, Work())

    def stop(path, reason):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(cache, model, processor, images, stop)

    again = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    assert list(again.missing(images).values()) == [images[2]]


def test_an_unreadable_image_is_reported_and_left_out(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    cache = FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor)
    Path(images[1]).write_bytes(b"broken")
    Path(images[2]).unlink()
    found = []
    assert fill(cache, model, processor, images, lambda *flaw: found.append(flaw), num_workers=1) == 1
    cache.reload()
    assert [path for path, _ in found] == images[1:] and "not an image" in found[0][1] and "no such" in found[1][1]
    assert images[0] in cache and images[1] not in cache


def progress_lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == filling.__name__]


def test_log_gets_lines_of_count_rate_and_time_left(standin, images, tmp_path, monkeypatch, caplog, capsys):
    model, processor = swap(standin, with_encoder("rad_dino"))
    monkeypatch.setattr(filling, "SECONDS_BETWEEN_LINES", 0)
    capsys.readouterr()
    with caplog.at_level("INFO", logger="qwenvl"):
        filled(model, processor, images, tmp_path / "cache")
    line = r"vision features: images encoded: 2 of 3, +[\d.]+ images/s, 00:0\d left"
    assert any(re.fullmatch(line, each) for each in progress_lines(caplog))
    # Nothing but those lines: no bar that moves by carriage returns.
    assert capsys.readouterr().err == ""


def test_only_the_first_process_shows_its_progress_and_only_if_it_has_work(
    standin, images, tmp_path, monkeypatch, caplog
):
    model, processor = swap(standin, with_encoder("rad_dino"))
    monkeypatch.setattr(filling, "SECONDS_BETWEEN_LINES", 0)
    caches = [FeatureCache(tmp_path / "cache", model.model.visual, processor.image_processor) for _ in range(2)]
    with caplog.at_level("INFO", logger="qwenvl"):
        hash_files(caches[1], images, Work(rank=1, world_size=2))
        hash_files(caches[0], [], Work())
        assert progress_lines(caplog) == []
        hash_files(caches[0], images, Work(rank=0, world_size=2))
    assert "files looked up (share of process 1 of 2): 2 of 2, " in progress_lines(caplog)[-1]


def test_terminal_gets_a_bar(standin, images, tmp_path, monkeypatch, caplog, capsys):
    model, processor = swap(standin, with_encoder("rad_dino"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level("INFO", logger="qwenvl"):
        filled(model, processor, images, tmp_path / "cache")
    assert progress_lines(caplog) == []
    assert "vision features: images encoded: 100%|" in capsys.readouterr().err


def test_features_that_are_no_numbers_are_not_stored(standin, images, tmp_path):
    model, processor = swap(standin, with_encoder("rad_dino"))
    model.model.visual.encoder.model.layernorm.bias.data[0] = float("inf")
    with pytest.raises(UserError, match="0.png: its features are infinite or NaN"):
        filled(model, processor, images, tmp_path / "cache")

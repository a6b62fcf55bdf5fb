"""The feature cache in whole runs: equal losses, logged sizes, bad images named, and bases that are swapped already."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.bench.standin import build_standin_encoder
from qwenvl.errors import UserError
from tests.train.conftest import REPOSITORY, conversation, losses, write_records

Run = Callable[..., Path]
OWN_LIMITS = {"max_pixels": None, "min_pixels": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small encoder in the layout of microsoft/rad-dino."""
    return build_standin_encoder(tmp_path_factory.mktemp("encoders") / "rad-dino")


@pytest.fixture
def swap(encoder: Path) -> dict:
    """Return the flags that swap the encoder."""
    return {"custom_vision_encoder": "rad_dino", "custom_vision_pretrained_path": encoder} | OWN_LIMITS


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return a function that returns what has been logged since it was last called."""
    caplog.set_level("INFO", logger="qwenvl")

    def text() -> str:
        lines = caplog.text
        caplog.clear()
        return lines

    return text


@pytest.mark.parametrize("flags", [{"bf16": True}, {"dataloader_num_workers": 1}, {"save_encoder": True}], ids=str)
def test_losses_with_the_cache_are_those_without(
    run_training: Run, swap: dict, tmp_path: Path, logged: Callable[[], str], flags: dict
) -> None:
    without = losses(run_training("without", **swap, **flags))
    first = losses(run_training("first", **swap, **flags, cache_vision_features=tmp_path / "features"))
    assert "4 of 4 images are to be computed" in logged()
    second = losses(run_training("second", **swap, **flags, cache_vision_features=tmp_path / "features"))

    assert first == second == pytest.approx(without, rel=1e-5)
    assert "0 of 4 images are to be computed" in logged()


def test_a_checkpoint_that_holds_the_encoder_shares_its_features(
    run_training: Run, swap: dict, tmp_path: Path, logged: Callable[[], str]
) -> None:
    run_training("named", **swap, cache_vision_features=tmp_path / "features")
    logged()
    run_training("held", **swap, cache_vision_features=tmp_path / "features", save_encoder=True)
    assert "0 of 4 images are to be computed" in logged()


def test_a_dry_run_tells_the_size_and_makes_no_folder(
    run_training: Run, swap: dict, tmp_path: Path, logged: Callable[[], str]
) -> None:
    run_training(**swap, cache_vision_features=tmp_path / "features", dry_run=True)
    # 4 tokens of 128 float32 numbers for each image.
    assert f"4 images take {4 * 4 * 128 * 4 / 1e9:.3g} GB in {tmp_path / 'features'}, with " in logged()
    assert not (tmp_path / "features").exists()


def test_videos_are_said_not_to_be_cached(
    run_training: Run, swap: dict, media: Path, tmp_path: Path, logged: Callable[[], str]
) -> None:
    records = [conversation("<video>\nWhat moves?", "A ball.", video="clip.mp4")] * 2
    flags = swap | {"dataset_use": write_records(media / "videos.json", records), "max_steps": 1}
    run_training(**flags, cache_vision_features=tmp_path / "features")
    assert "1 videos are not cached, their frames are encoded each time" in logged()


@pytest.fixture
def broken(media: Path, tmp_path: Path) -> Path:
    """Return a file of six records, the last of which has an image that breaks off after its header."""
    for name in ("red.png", "wide.png"):
        shutil.copy(media / name, tmp_path)
    whole = (media / "tall.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
    names = ["red.png", "wide.png", "red.png", "wide.png", "red.png", "bad.png"]
    return write_records(tmp_path / "bad.json", [conversation("<image>\nWhat?", "A.", image=name) for name in names])


def test_a_bad_image_ends_the_filling_with_its_record(
    run_training: Run, swap: dict, broken: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"bad.json row 5: .*bad.png: .*--bad_sample_policy skip"):
        run_training(**swap | {"dataset_use": broken}, cache_vision_features=tmp_path / "features")


def test_a_bad_image_is_left_out_under_skip_and_counted_once(
    run_training: Run, swap: dict, broken: Path, tmp_path: Path, logged: Callable[[], str]
) -> None:
    flags = swap | {"dataset_use": broken, "bad_sample_policy": "skip", "max_bad_samples": 1, "num_train_epochs": 2}
    run_training(**flags | {"max_steps": -1}, cache_vision_features=tmp_path / "features")
    lines = logged()
    assert lines.count("bad sample left out") == 1
    assert "bad.json row 5" in lines and "no features" not in lines


def test_a_data_worker_that_dies_while_filling_is_one_line(
    run_training: Run, swap: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("qwenvl.train.features.fill_cache", die)
    with pytest.raises(
        UserError, match=r"pid 7\) was ended by a signal \(Killed\).*the features that are stored are kept"
    ):
        run_training("run", **swap, cache_vision_features=tmp_path / "features")


@pytest.fixture
def swapped_base(run_training: Run, swap: dict) -> Path:
    """Return the folder of a whole model with a custom tower."""
    flags = {"tune_mm_llm": True, "lora_enable": False, "save_encoder": True, "max_steps": 1}
    return run_training("base", **swap | flags)


def test_a_base_that_is_swapped_already_needs_no_name_of_an_encoder(
    run_training: Run, swapped_base: Path, tmp_path: Path, logged: Callable[[], str]
) -> None:
    base = {"model_name_or_path": swapped_base} | OWN_LIMITS
    without = losses(run_training("without", **base))
    with_cache = losses(run_training("with", **base, cache_vision_features=tmp_path / "features"))
    assert with_cache == pytest.approx(without, rel=1e-5)
    assert "4 of 4 images are to be computed" in logged()


def test_processes_that_share_a_swapped_base_under_zero3_fill_the_cache(
    run_processes: Run, swapped_base: Path, tmp_path: Path
) -> None:
    base = {"model_name_or_path": swapped_base, "use_cpu": False} | OWN_LIMITS
    base |= {"deepspeed": REPOSITORY / "scripts/zero3.json"}
    without = losses(run_processes(2, "without", **base))
    with_cache = losses(run_processes(2, "with", **base, cache_vision_features=tmp_path / "features"))
    assert with_cache == pytest.approx(without, rel=1e-3)
    (described,) = (tmp_path / "features").glob("*/encoder.json")
    assert json.loads(described.read_text())["weights"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"custom_vision_encoder": None, "custom_vision_pretrained_path": None}, "has Qwen3-VL's own; name one by"),
        ({"cache_vision_features": "a_file"}, "a_file is a file; give a folder"),
        ({"cache_vision_features": "a_file/below"}, "a_file is a file; give a folder"),
    ],
    ids=["Qwen's own encoder", "file", "below a file"],
)
def test_a_cache_that_cannot_be_is_refused_before_anything_is_read(
    run_training: Run, swap: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("")
    with pytest.raises(UserError, match=complaint):
        run_training(**swap | {"cache_vision_features": "features", "dataset_use": "nowhere.json"} | flags)

import logging
import shutil
from pathlib import Path

import pytest

from qwenvl.checkpoint.manifest import MANIFEST_NAME
from qwenvl.checkpoint.select import check_whole, newest_whole_checkpoint
from qwenvl.errors import UserError
from qwenvl.train.train_qwen import train
from tests.train.conftest import command_line, losses
from tests.trained_run import WAYS_TO_BREAK, Break, break_file, flipped


@pytest.mark.parametrize("way", WAYS_TO_BREAK)
def test_auto_passes_over_a_broken_checkpoint_and_says_which_file_it_is(
    own_copy: Path, way: Break, caplog: pytest.LogCaptureFixture
) -> None:
    break_file(own_copy / "checkpoint-2" / "optimizer.pt", way)

    with caplog.at_level(logging.WARNING, logger="qwenvl"):
        assert newest_whole_checkpoint(str(own_copy)) == str(own_copy / "checkpoint-1")

    assert f"{own_copy}/checkpoint-2 is broken: optimizer.pt" in caplog.text
    assert f"continuing from the newest complete checkpoint, {own_copy}/checkpoint-1" in caplog.text


def test_without_a_whole_checkpoint_auto_does_not_start_afresh_in_silence(own_copy: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        break_file(own_copy / f"checkpoint-{step}" / "trainer_state.json", flipped)

    with pytest.raises(
        UserError, match=r"no checkpoint in .* is complete \(checkpoint-2: trainer_state.json is damaged"
    ):
        newest_whole_checkpoint(str(own_copy))
    assert newest_whole_checkpoint(str(tmp_path / "nowhere")) is None


def test_a_named_checkpoint_that_is_broken_is_refused_by_its_file(own_copy: Path) -> None:
    break_file(own_copy / "checkpoint-2" / "rng_state.pth", flipped)

    check_whole(own_copy / "checkpoint-1")
    with pytest.raises(UserError, match="checkpoint-2: rng_state.pth is damaged .*or auto for the newest complete one"):
        check_whole(own_copy / "checkpoint-2")


def test_a_run_goes_on_from_the_newest_whole_checkpoint_to_the_same_end(
    trained: Path, trained_flags: dict, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    for step in (1, 2):
        shutil.copytree(trained / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    (folder / "checkpoint-1" / MANIFEST_NAME).unlink()  # as an earlier version wrote it
    break_file(folder / "checkpoint-2" / "adapter_model.safetensors", flipped)

    train(command_line(**trained_flags, output_dir=folder, resume_from_checkpoint="auto"))

    assert losses(folder) == losses(trained)
    assert newest_whole_checkpoint(str(folder)) == str(folder / "checkpoint-2")


@pytest.mark.parametrize("flag", ["model_name_or_path", "vision_merger_path"])
def test_a_run_does_not_start_from_a_broken_folder_of_an_earlier_one(
    own_copy: Path, trained_flags: dict, tmp_path: Path, flag: str
) -> None:
    break_file(own_copy / "adapter_model.safetensors", flipped)

    with pytest.raises(UserError, match=f"--{flag} {own_copy}: adapter_model.safetensors is damaged"):
        train(command_line(**trained_flags | {flag: own_copy}, output_dir=tmp_path / "new"))

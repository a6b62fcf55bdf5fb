import os
import shutil
from pathlib import Path

import pytest

from qwenvl.checkpoint import save
from qwenvl.checkpoint.lock import lock_output_dir, release_output_dirs
from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault, write_manifest
from qwenvl.checkpoint.save import publish_files, remove_folder, superfluous_checkpoints
from qwenvl.errors import UserError
from qwenvl.train.train_qwen import train
from tests.train.conftest import command_line


@pytest.mark.parametrize(
    ("limit", "best", "gone"),
    [
        (None, None, []),
        (0, None, []),
        (5, None, []),
        (2, None, [2, 10]),
        (2, 2, [10, 11]),
        (1, 2, [10, 11]),
        (1, 12, [2, 10, 11]),
        (1, None, [2, 10, 11]),
    ],
)
def test_the_oldest_checkpoints_go_but_neither_the_newest_nor_the_best(
    tmp_path: Path, limit: int | None, best: int | None, gone: list[int]
) -> None:
    for step in (10, 2, 12, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()

    found = superfluous_checkpoints(tmp_path, limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))

    assert found == [tmp_path / f"checkpoint-{step}" for step in gone]


def test_a_checkpoint_that_is_being_removed_has_no_name_of_its_own_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "checkpoint-1", tmp_path / ".incomplete"):
        folder.mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").touch()
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed before the first file went

    remove_folder(tmp_path / "checkpoint-1", tmp_path / ".incomplete")

    assert not (tmp_path / "checkpoint-1").exists()


@pytest.mark.parametrize("moves", range(4))
def test_a_model_that_is_published_in_part_is_none(tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = tmp_path, tmp_path / ".incomplete" / "final"
    source.mkdir(parents=True)
    for folder, content in ((target, "old"), (source, "new")):
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(content)
    write_manifest(target)
    replace, done = os.replace, []

    def replace_until_killed(old: Path, new: Path) -> None:
        if new.parent == source:  # its manifest, of which no reader of the target knows
            replace(old, new)
            return
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(replace(old, new))

    monkeypatch.setattr(save.os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        publish_files(source, target)

    assert not (target / "config.json").exists()
    assert not (target / MANIFEST_NAME).exists() or moves == 3


def test_a_dry_run_and_a_refused_run_leave_nothing_in_the_output_folder(trained_flags: dict, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"

    train(command_line(**trained_flags | {"dry_run": True}, output_dir=folder))
    assert not folder.parent.exists()
    with pytest.raises(UserError, match="nowhere.json"):
        train(command_line(**trained_flags | {"dataset_use": "nowhere.json"}, output_dir=folder))
    assert not folder.parent.exists()


def test_a_run_is_refused_in_a_folder_that_another_is_using_but_a_dry_one_is_not(
    trained_flags: dict, tmp_path: Path
) -> None:
    with release_output_dirs():
        lock_output_dir(str(tmp_path / "run"))

        train(command_line(**trained_flags | {"dry_run": True}, output_dir=tmp_path / "run"))
        with pytest.raises(UserError, match="is in use by"):
            train(command_line(**trained_flags, output_dir=tmp_path / "run"))


def test_a_run_leaves_neither_lock_nor_unfinished_folder(trained: Path) -> None:
    assert not (trained / ".lock").exists()
    assert not (trained / ".incomplete").exists()
    assert find_fault(trained, for_resume=False) is None

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.checkpoint import save
from qwenvl.checkpoint.lock import lock_output_dir, release_output_dirs
from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault, write_manifest
from qwenvl.checkpoint.save import (
    INCOMPLETE,
    clear_incomplete,
    prepare_output_dir,
    publish_files,
    remove_folder,
    replace_folder,
    superfluous_checkpoints,
)
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


def write_model(folder: Path, content: str) -> Path:
    """Write a model whose tokenizer keeps its chat templates in a folder of its own; all files have one content."""
    for name in ("config.json", "model.safetensors", "additional_chat_templates/tool.jinja"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def contents(folder: Path) -> set[str]:
    """Return what the files of a model hold, without its manifest and what is unfinished."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    return {path.read_text() for path in files if INCOMPLETE not in path.parts}


def test_a_crash_while_the_manifest_is_written_leaves_the_published_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(write_model(tmp_path, "old"))
    source = write_model(tmp_path / INCOMPLETE / "final", "new")
    monkeypatch.setattr(save, "write_manifest", killed)

    with pytest.raises(KeyboardInterrupt):
        publish_files(source, tmp_path)

    shutil.rmtree(tmp_path / INCOMPLETE)
    assert find_fault(tmp_path, for_resume=False) is None
    assert contents(tmp_path) == {"old"}


def killed(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "moves", [None, 0, 1, 2, 3], ids=lambda moves: "no move" if moves is None else f"{moves} moves"
)
def test_a_crash_while_a_folder_is_published_leaves_no_model_and_the_next_run_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int | None
) -> None:
    write_manifest(write_model(tmp_path, "old"))
    source = write_model(tmp_path / INCOMPLETE / "final", "new")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moves is None:
            patch.setattr(save, "replace_folder", killed)
        else:
            patch.setattr(save.os, "replace", killed_at(moves, source))
        publish_files(source, tmp_path)
    assert not (tmp_path / "config.json").exists()  # so nobody takes the mixture for a model

    clear_incomplete(str(tmp_path))  # as the next run does, which publishes what its last checkpoint holds
    publish_files(write_model(tmp_path / INCOMPLETE / "final", "new"), tmp_path)

    assert find_fault(tmp_path, for_resume=False) is None
    assert contents(tmp_path) == {"new"}


def killed_at(count: int, source: Path) -> Callable[[Path, Path], None]:
    """Return an `os.replace` that fails at a move between two folders after so many; the source's manifest passes."""
    replace, done = os.replace, []

    def until_killed(old: Path, new: Path) -> None:
        if new.parent == old.parent == source:
            return replace(old, new)
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(new)
        return replace(old, new)

    return until_killed


@pytest.mark.parametrize(("at", "kept"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_checkpoint_that_is_being_replaced_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, kept: str
) -> None:
    target, source = tmp_path / "checkpoint-1", tmp_path / INCOMPLETE / "checkpoint-1"
    write_manifest(write_model(target, "old"))
    write_manifest(write_model(source, "new"))
    calls = []

    def kill(old: Path, new: Path, replace: Callable = os.replace) -> None:
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(replace(old, new))

    with monkeypatch.context() as patch:
        patch.setattr(save.os, "replace", kill)
        patch.setattr(save.shutil, "rmtree", lambda path, **kwargs: killed() if at == len(calls) == 2 else None)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(source, target)

    with release_output_dirs():
        prepare_output_dir(str(tmp_path), "auto")
        clear_incomplete(str(tmp_path))
    assert find_fault(target, for_resume=False) is None
    assert contents(target) == {kept}


@pytest.mark.parametrize("name", ["checkpoint-3", "adapter_config.json", "config.json"])
def test_a_folder_of_another_run_is_refused_unless_it_is_resumed(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "checkpoint-3", "") if name == "checkpoint-3" else (tmp_path / name).touch()

    with release_output_dirs(), pytest.raises(UserError, match="already holds another run's checkpoints"):
        prepare_output_dir(str(tmp_path), None)
    with release_output_dirs():
        prepare_output_dir(str(tmp_path), "auto")


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

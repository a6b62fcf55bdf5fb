import errno
import logging
import os
import re
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from qwenvl.checkpoint import disk
from qwenvl.checkpoint.disk import CheckpointDisk, checkpoint_bytes, format_bytes
from qwenvl.checkpoint.manifest import find_fault, folder_bytes
from qwenvl.checkpoint.select import newest_whole_checkpoint
from qwenvl.errors import UserError
from qwenvl.train.train_qwen import train
from tests.train.conftest import command_line

Usage = namedtuple("Usage", "total used free")
FULL = os.strerror(errno.ENOSPC)
TORCH_ERROR = "[enforce fail at inline_container.cc:672] . unexpected pos 928768 vs 928656"


@pytest.fixture
def saving(tmp_path: Path) -> CheckpointDisk:
    """Return the disk of a run that has one checkpoint and is writing the next."""
    for folder in ("checkpoint-1", ".incomplete/checkpoint-2"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        (tmp_path / "run" / folder / "model.safetensors").write_bytes(bytes(2048))
    return CheckpointDisk(tmp_path / "run" / ".incomplete")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, FULL), FULL),
        (OSError(errno.EDQUOT, "quota"), os.strerror(errno.EDQUOT)),
        (OSError(errno.EROFS, "read only", "anything"), os.strerror(errno.EROFS)),
        (PermissionError(errno.EACCES, "denied"), os.strerror(errno.EACCES)),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError(TORCH_ERROR), "a file was written only in part"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_save_that_fails_on_the_disk_is_one_line_and_leaves_the_earlier_checkpoints(
    saving: CheckpointDisk, error: Exception, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught, saving.explain_errors():
        raise error

    assert "2.0 KiB or more needed" in str(caught.value) and "free)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(saving.folder.iterdir())
    assert (saving.folder.parent / "checkpoint-1" / "model.safetensors").stat().st_size == 2048


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "no", "/elsewhere/a.png"),
        OSError(errno.ENOSPC, FULL),  # of the shared memory of data workers, say
    ],
)
def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))) as caught, CheckpointDisk(tmp_path).explain_errors():
        raise error

    assert not isinstance(caught.value, UserError)


def test_a_read_only_output_folder_is_reported_before_anything_is_half_written(tmp_path: Path) -> None:
    inside = tmp_path / "run" / ".incomplete"

    with pytest.raises(UserError, match=os.strerror(errno.EACCES)), CheckpointDisk(inside).explain_errors():
        raise PermissionError(errno.EACCES, "denied", str(inside / "checkpoint-2"))


def test_room_is_looked_for_before_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 29, 3 << 20))
    checked = CheckpointDisk(tmp_path / "run" / ".incomplete")

    checked.check_room(2 << 20)
    with pytest.raises(UserError, match="too little space for the next save .*: 4.0 MiB or more needed, 3.0 MiB free"):
        checked.check_room(4 << 20)


def test_a_disk_that_is_too_small_for_the_checkpoints_to_come_is_reported_before_the_first_step(
    trained_flags: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flags = trained_flags | {"max_steps": 6, "save_total_limit": 2}
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(1 << 20, 1 << 20, 150_000))
    with caplog.at_level(logging.WARNING, logger="qwenvl"), pytest.raises(UserError, match="too little space"):
        train(command_line(**flags, output_dir=tmp_path / "run"))

    assert "3 checkpoints of about" in caplog.text
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_run_whose_disk_fills_up_keeps_its_checkpoints_and_goes_on_later(
    trained_flags: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_until_full(value: object, path: str, *args: object, **kwargs: object) -> None:
        save(value, path, *args, **kwargs)
        if path.endswith("checkpoint-2/optimizer.pt"):
            os.truncate(path, 928656)
            raise RuntimeError(TORCH_ERROR)

    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(UserError, match="the checkpoint could not be written: "):
        train(command_line(**trained_flags, output_dir=tmp_path / "run"))
    monkeypatch.setattr(torch, "save", save)

    folder = tmp_path / "run"
    assert newest_whole_checkpoint(str(folder)) == str(folder / "checkpoint-1")
    assert not [path for path in folder.rglob("*") if "checkpoint-2" in path.name]
    trainer = train(command_line(**trained_flags, output_dir=folder, resume_from_checkpoint="auto"))
    assert find_fault(folder, for_resume=False) is None
    estimate = checkpoint_bytes(trainer.model, trainer.optimizer, deepspeed=False)
    assert estimate == pytest.approx(folder_bytes(folder / "checkpoint-2"), rel=0.25)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a disk in memory of a size such as 3m, and gives its folder."""
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root can mount a small disk")
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small disk is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", ["700k", "860k", "1m"])
def test_on_a_disk_that_is_really_full_no_save_is_half(
    trained_flags: dict, small_disk: Callable[[str], Path], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk(size) / "run"
    monkeypatch.setattr(CheckpointDisk, "check_room", lambda self, needed: None)  # as if it filled up meanwhile

    with pytest.raises(UserError, match=rf"the checkpoint could not be written: .*disk {folder.parent}: .* free\)"):
        train(command_line(**trained_flags | {"max_steps": 20}, output_dir=folder))

    for checkpoint in folder.glob("checkpoint-*"):
        assert find_fault(checkpoint, for_resume=True) is None
    assert not (folder / ".incomplete").exists()


def test_a_number_of_bytes_is_reported_in_a_unit_that_suits_it() -> None:
    assert [format_bytes(count) for count in (12, 1536, 12 << 30)] == ["12 bytes", "1.5 KiB", "12.0 GiB"]

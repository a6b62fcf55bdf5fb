import logging
from pathlib import Path

import pytest

from qwenvl.checkpoint.rollback import set_later_checkpoints_aside


def checkpoints(folder: Path, *steps: int) -> Path:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_later_checkpoints_are_set_aside_and_reported_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = checkpoints(tmp_path / "run", 2, 4, 8)

    with caplog.at_level(logging.INFO, logger="qwenvl"):
        set_later_checkpoints_aside(str(run), str(run / "checkpoint-2"), step=2)

    assert names(run) == ["checkpoint-2", "superseded"]
    assert names(run / "superseded") == ["checkpoint-4", "checkpoint-8"]
    assert caplog.messages == [
        f"continuing from {run}/checkpoint-2: checkpoint-4, checkpoint-8 moved to {run}/superseded"
    ]


def test_what_was_set_aside_before_is_kept(tmp_path: Path) -> None:
    run = checkpoints(tmp_path / "run", 2, 4)
    checkpoints(run / "superseded", 4)
    (run / "superseded" / "checkpoint-4" / "old").touch()

    set_later_checkpoints_aside(str(run), str(run / "checkpoint-2"), step=2)

    assert names(run / "superseded") == ["checkpoint-4", "checkpoint-4-2"]
    assert names(run / "superseded" / "checkpoint-4") == ["old"]


def test_the_newest_checkpoint_sets_nothing_aside(tmp_path: Path) -> None:
    run = checkpoints(tmp_path / "run", 2, 4)

    set_later_checkpoints_aside(str(run), str(run / "checkpoint-4"), step=4)

    assert names(run) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_of_another_folder_sets_aside_all_that_are_here(tmp_path: Path) -> None:
    run, other = checkpoints(tmp_path / "run", 2, 8), checkpoints(tmp_path / "other", 4)

    set_later_checkpoints_aside(str(run), str(other / "checkpoint-4"), step=4)

    assert names(run) == ["superseded"]
    assert names(other) == ["checkpoint-4"]

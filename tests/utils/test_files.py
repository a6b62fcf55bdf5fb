"""Files are there whole or not at all, and what the killed left is removed."""

import os
from pathlib import Path

import pytest

from qwenvl.utils.files import ABANDONED_AFTER_SECONDS, remove_abandoned, written_whole


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(target) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and target.read_text() == "old"

    with written_whole(target) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and target.read_text() == "new"


def test_files_of_living_processes_and_young_ones_of_other_machines_stay(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.json") as mine:
        mine.write_text("half")
        (tmp_path / "b.json@elsewhere-1-1.unfinished").write_text("half")
        (tmp_path / "c.json.unfinished").write_text("half")
        assert remove_abandoned(tmp_path) == 0

        for path in tmp_path.iterdir():
            old = path.stat().st_mtime - ABANDONED_AFTER_SECONDS - 1
            os.utime(path, (old, old))
        (tmp_path / "whole.json").write_text("{}")
        os.utime(tmp_path / "whole.json", (1, 1))
        assert remove_abandoned(tmp_path) == 3
        mine.write_text("half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "whole.json"]

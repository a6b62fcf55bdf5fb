"""Tests of files that are written whole or not at all, and of removing what killed processes have left."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.files import ABANDONED_AFTER_SECONDS, WholeFiles, refuse_inputs, remove_abandoned, written_whole


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


def test_files_appear_together_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "out"
    with pytest.raises(RuntimeError), WholeFiles(folder, ["a", "b"]) as files:
        files["a"].write("half")
        raise RuntimeError
    assert list(folder.iterdir()) == []
    with WholeFiles(folder, ["a", "b"]) as files:
        files["a"].write("whole")
        assert not (folder / "a").exists()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "whole", "b": ""}
    with pytest.raises(UserError, match="already holds a, b"):
        WholeFiles(folder, ["a", "b", "c"])


def test_a_link_left_in_the_folder_does_not_lead_the_writing_elsewhere(tmp_path: Path):
    (tmp_path / "precious").write_text("keep")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".a.partial").symlink_to(tmp_path / "precious")
    (folder / "a").symlink_to(tmp_path / "precious")
    with WholeFiles(folder, ["a"], overwrite=True) as files:
        files["a"].write("new")
    assert (tmp_path / "precious").read_text() == "keep"
    assert (folder / "a").read_text() == "new" and not (folder / "a").is_symlink()


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the output folder"):
        WholeFiles(tmp_path / "file" / "out", ["a"])


@pytest.mark.parametrize(
    "name_of",
    [
        lambda path: path,
        lambda path: path.parent / "sub" / ".." / path.name,
        lambda path: path.parent / "link",
        lambda path: path.parent / "hard",
        lambda path: path.parent / "circle" / path.name,
    ],
    ids=["same", "dots", "link", "hard link", "linked folder"],
)
@pytest.mark.parametrize("name", ["train.json", "train.json.gz"])
def test_an_input_is_never_an_output_under_any_of_its_names(tmp_path: Path, name: str, name_of):
    source = tmp_path / name
    source.write_text("precious")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(name)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "circle").symlink_to(tmp_path)
    output = name_of(source)
    with pytest.raises(UserError, match=f"{output} is what this command reads .* give another --out"):
        WholeFiles(output.parent, [output.name], overwrite=True, inputs=[None, "gone", source])
    with pytest.raises(UserError, match="is what this command reads"):
        refuse_inputs([source], [output])
    assert source.read_text() == "precious"
    refuse_inputs([tmp_path / "new"], [source, tmp_path / "new"])


def test_an_exclusive_file_replaces_what_a_killed_run_has_left(tmp_path: Path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / ".a.png.partial").symlink_to(tmp_path / "precious")
    with written_whole(tmp_path / "a.png", exclusive=True) as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "a.png").read_text() == "new"
    assert (tmp_path / "precious").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "precious"]


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_name_that_only_just_fits_on_the_disk_can_be_written(tmp_path: Path, exclusive: bool):
    target = tmp_path / ("n" * 255)
    with written_whole(target, exclusive=exclusive) as unfinished:
        unfinished.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_two_threads_that_write_one_file_do_not_meet(tmp_path: Path):
    def write(text: str) -> Path:
        with written_whole(tmp_path / "a") as unfinished:
            unfinished.write_text(text)
            return unfinished

    with ThreadPoolExecutor(1) as pool, written_whole(tmp_path / "a") as mine:
        mine.write_text("second")
        other = pool.submit(write, "first").result()
        assert mine != other and (tmp_path / "a").read_text() == "first"
    assert (tmp_path / "a").read_text() == "second"


def test_no_output_appears_when_one_cannot_be_written(tmp_path: Path):
    (tmp_path / ".b.partial").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}: cannot write in this folder .* give another --out"):
        WholeFiles(tmp_path, ["a", "b"]).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [".b.partial"]

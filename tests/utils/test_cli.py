"""Tests of what the command-line tools share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.cli import ToolParser, positive_int, print_summary
from qwenvl.utils.files import WholeFiles, refuse_inputs
from qwenvl.utils.parallel import in_parallel


def _square(number: int) -> int:
    return number * number


def _die(number: int) -> None:
    os._exit(number)


def _refuse(number: int) -> None:
    raise UserError(f"task {number}")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int):
    assert list(in_parallel(_square, range(50), workers)) == [number * number for number in range(50)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_reaches_the_caller(workers: int):
    with pytest.raises(UserError, match="task 0"):
        list(in_parallel(_refuse, range(3), workers))


def test_tasks_are_taken_only_a_few_ahead():
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_parallel(_square, tasks(), 2)
    next(results)
    assert len(taken) <= 8
    results.close()


def test_a_worker_that_dies_is_named_as_a_lack_of_memory():
    with pytest.raises(UserError, match="a worker process died.*--workers"):
        list(in_parallel(_die, [1, 2], 2))


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
    with pytest.raises(UserError, match="cannot make the output folder"):
        WholeFiles(tmp_path / "file" / "out", ["a"])


def test_wrong_arguments_are_told_in_one_line():
    parser = ToolParser("x")
    parser.add_argument("--size", type=positive_int)
    for arguments in (["--size", "0"], ["--size", "x"], ["--unknown"]):
        with pytest.raises(UserError, match="--help") as error:
            parser.parse_args(arguments)
        assert "\n" not in str(error.value)


def test_the_summary_is_a_table_with_thousands_apart(capsys: pytest.CaptureFixture[str]):
    print_summary("title", [("studies", 1234567), ("seconds", "1.5")])
    assert capsys.readouterr().out == "title\n  studies  1,234,567\n  seconds        1.5\n"


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

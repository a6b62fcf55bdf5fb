"""Tests of the command line of the MIMIC-CXR conversion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.prepare_mimic_cxr import main
from tests.medical.mimic.mimic_tree import Tree

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "mimic")


def test_relative_paths_are_relative_to_the_given_folder(tree: Tree, tmp_path: Path):
    root = tree.study(10000001, 50000001).write()
    main(["--jpg_root", str(root), "--reports", str(root), "--out", str(tmp_path / "out"), "--paths", "relative"])
    (record,) = json.loads((tmp_path / "out" / "mimic_train.json").read_text())
    assert record["image"] == ["files/p10/p10000001/s50000001/d50000001-0.jpg"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--reports", "r", "--llava_rad", "a.json"],
        ["--llava_rad", "a.json", "--prior", "both"],
        ["--llava_rad", "a.json", "--split_csv", "a.csv"],
        ["--reports", "r", "--views", "side"],
        ["--reports", "r", "--max_images", "2"],
        ["--reports", "r", "--allow_outside"],
        ["--reports", "r", "--labels_csv", "a.csv"],
        ["--reports", "r", "--min_words", "5", "--max_words", "4"],
        ["--reports", "r", "--prompt", "<image> Go."],
    ],
)
def test_options_that_contradict_or_have_no_effect_are_refused(tree: Tree, tmp_path: Path, options: list[str]):
    root = tree.study(10000001, 50000001).write()
    options = [str(root) if option == "r" else option for option in options]
    with pytest.raises(UserError):
        main(["--jpg_root", str(root), "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_run_by_path_it_reports_a_mistake_in_one_line_and_exits_with_2(tmp_path: Path):
    command = [sys.executable, str(REPOSITORY / "tools" / "prepare_mimic_cxr.py"), "--jpg_root", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--reports", "none.zip"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1

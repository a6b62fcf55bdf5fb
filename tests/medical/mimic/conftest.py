"""Fixtures of the MIMIC-CXR tests: a tree of chosen studies, and a function that runs the command on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenvl.tools.prepare_mimic_cxr import main
from tests.medical.mimic.mimic_tree import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "mimic")


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Return a function that runs the command on a root and gives the records of each split."""

    def run(root: Path, *options: str, reports: str | None = None) -> dict[str, list[dict[str, Any]]]:
        out = tmp_path / "out"
        source = ["--reports", str(root if reports is None else root / reports)]
        main(["--jpg_root", str(root), *source, "--out", str(out), "--workers", "1", "--overwrite", *options])
        names = {"train": "train", "validate": "valid", "test": "test"}
        return {split: json.loads((out / f"mimic_{name}.json").read_text()) for split, name in names.items()}

    return run

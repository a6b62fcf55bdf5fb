"""docs/custom_encoder.md: its example runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import qwenvl.vision  # noqa: F401  makes the classes known to the Auto classes
from qwenvl.model.arguments import ModelArguments

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "custom_encoder.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with the page's Python files, each under the name in its first line."""
    folder = tmp_path_factory.mktemp("page")
    for code in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL):
        (folder / re.match(r"# (\w+\.py)", code).group(1)).write_text(code)
    return folder


def test_example_runs_as_written_and_its_folder_loads(folder, standin, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "try_encoder.py", str(standin)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "token grid: [[1, 8, 8]]" in run.stdout and "logits: (1, " in run.stdout
    # A checkpoint names the encoder's file by its whole path, so that it loads from anywhere.
    model = AutoModelForImageTextToText.from_pretrained(folder / "swapped", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder / "swapped")
    assert type(model.model.visual.encoder).__name__ == "GrayConvEncoder"
    made = processor.image_processor([torch.zeros(3, 20, 30, dtype=torch.uint8)], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 8, 8]]


def test_every_flag_of_the_page_exists():
    table = DOC[DOC.index("## Options") :]
    flags = re.findall(r"^\| `--(\w+)`", table, re.MULTILINE)
    assert len(flags) > 5 and set(flags) <= set(ModelArguments.__dataclass_fields__)

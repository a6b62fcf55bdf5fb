"""The notebook on boxes runs from top to bottom, started in the root or in tools, without Jupyter."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "tools" / "process_bbox.ipynb"


@pytest.mark.parametrize("start", [NOTEBOOK.parent, NOTEBOOK.parents[1]])
def test_the_notebook_runs_and_draws_the_boxes_back_where_they_were(
    start: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(start)
    monkeypatch.setattr(sys, "path", list(sys.path))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    space: dict = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    difference = np.asarray(space["drawn"]).astype(int) - np.asarray(space["image"].convert("RGB"))
    for _, box in space["boxes"]:
        assert difference[int(box.y1), int(box.x1)].any()
    assert "exceeds the image" in capsys.readouterr().out
    assert space["record"]["conversations"][1]["value"].count("bbox_2d") == 3


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)

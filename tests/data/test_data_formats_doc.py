"""Tests that docs/data_formats.md tells the truth: each of its examples is read, and as it says."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.data.annotations import BadSampleTracker, Record, Turn, read_annotations

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/data_formats.md").read_text()
README_EXAMPLE = re.search(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOC, re.M | re.S))
EXAMPLES = {title: re.findall(r"```json\n(.*?)```", text, re.S) for title, text in SECTIONS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the media that the examples name."""
    (tmp_path / "frames").mkdir()
    for name in ("1.png", "2.png", "3.png", "frames/9.png", "frames/10.png"):
        Image.new("L", (100, 200)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, example: str) -> Record:
    """Return the one record of an example."""
    (folder / "t.json").write_text(f"[{example}]")
    annotations = read_annotations(str(folder / "t.json"), str(folder), BadSampleTracker(), str(folder / "cache"))
    (record,) = annotations.records
    assert annotations.notes == ()
    return record


@pytest.mark.parametrize("example", EXAMPLES["Forms"])
def test_all_forms_say_the_same(folder: Path, example: str):
    record = read(folder, example)
    assert record.turns == (Turn("user", "<image>What is shown?"), Turn("assistant", "A chest X-ray."))
    assert record.images == (str(folder / "1.png"),)


def test_the_records_of_the_readme_are_read(tmp_path: Path):
    for name in ("images/1.png", "images/2.png", "videos/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train.json").write_text(README_EXAMPLE)
    records = read_annotations(str(tmp_path / "train.json"), str(tmp_path), BadSampleTracker()).records
    assert [(len(record.images), len(record.videos)) for record in records] == [(1, 0), (2, 0), (0, 1), (0, 0), (1, 0)]
    assert json.loads(records[-1].turns[-1].text) == [{"bbox_2d": [210, 340, 255, 395], "label": "nodule"}]


def test_system_prompt_thought_tools_and_unsupervised_turns_are_kept(folder: Path):
    record = read(folder, EXAMPLES["Optional fields"][0])
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"factor": 2}}}
    assert record.turns == (
        Turn("system", "You are a radiologist."),
        Turn("user", "<image>Is there a nodule?"),
        Turn("assistant", "Perhaps.", supervised=False),
        Turn("user", "Look closer."),
        Turn("assistant", "", "I should enlarge it.", tool_calls=json.dumps([call])),
        Turn("tool", "done"),
        Turn("assistant", "No."),
    )
    assert json.loads(record.tools) == [{"type": "function", "function": {"name": "zoom", "parameters": {}}}]


def test_boxes_are_filled_in_as_qwen3_vl_counts_them(folder: Path):
    turns = read(folder, EXAMPLES["Optional fields"][1]).turns
    assert turns[0].text == "<image>Find the nodule."
    assert turns[1].text == '[{"bbox_2d": [100, 100, 500, 400], "label": "nodule"}]'


def test_media_of_every_form_are_files(folder: Path):
    embedded, listed, part, in_folder = (read(folder, example) for example in EXAMPLES["Images and videos"])
    with Image.open(embedded.images[0]) as image:
        image.load()
        assert image.size == (1, 1)
    for record, names, fps in (
        (listed, ["1.png", "2.png", "3.png"], 4),
        (part, ["1.png", "2.png"], 1),
        (in_folder, ["frames/9.png", "frames/10.png"], 1),
    ):
        assert record.turns[0].text == "<video>What happens?"
        frames = json.loads(Path(record.videos[0]).read_text())
        assert frames == {"fps": fps, "frames": [str(folder / name) for name in names]}

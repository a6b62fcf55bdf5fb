"""Tests that CONTRIBUTING.md and docs/how_it_works.md name what is there, and that the token counts are true."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from qwenvl.bench.real_shape import SHAPES
from qwenvl.data.pixel_limits import OFFICIAL_PIXEL_LIMITS
from qwenvl.vision.encoders.rad_dino import RadDinoEncoder

REPOSITORY = Path(__file__).resolve().parents[1]
HOW_IT_WORKS = (REPOSITORY / "docs/how_it_works.md").read_text(encoding="utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIAGRAMS = re.findall(r"```mermaid\n(.*?)```", HOW_IT_WORKS, re.DOTALL)


@pytest.mark.parametrize("text", [HOW_IT_WORKS, CONTRIBUTING], ids=["how_it_works.md", "CONTRIBUTING.md"])
def test_every_module_named_by_its_path_in_the_package_is_there(text: str) -> None:
    named = set(re.findall(r"(?<!tests/)\b(?:data|vision|model|train|checkpoint|encoders)/\w+\.py\b", text))
    assert named
    folders = (REPOSITORY / "qwenvl", REPOSITORY / "qwenvl/vision")
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("qwenvl.data.annotations", ["read_annotations"]),
        ("qwenvl.data.lengths", ["TokenCounter"]),
        ("qwenvl.data.packing", ["complete_packs"]),
        ("qwenvl.data.encoding", ["RecordEncoder"]),
        ("qwenvl.data.labels", ["make_labels"]),
        ("qwenvl.model.forward", ["hidden_states"]),
        ("qwenvl.model.loss", ["linear_cross_entropy"]),
        ("qwenvl.train.finite", ["StepRecorder"]),
        ("qwenvl.vision.native", ["PackedVisionTower"]),
        ("qwenvl.train.prepare", ["prepare_base"]),
        ("qwenvl.vision.processing", ["swap_processor"]),
        ("qwenvl.vision.modeling", ["swap_vision_tower"]),
    ],
)
def test_every_function_of_the_walk_through_is_there(module: str, names: list[str]) -> None:
    assert all(f"`{name}" in HOW_IT_WORKS and hasattr(import_module(module), name) for name in names)


def test_contributing_and_the_docs_name_the_same_five_files_to_read_first() -> None:
    numbered = re.findall(r"^\d\. `([\w/]+\.py)`", CONTRIBUTING, re.MULTILINE)
    assert numbered == re.findall(r"^\| `([\w/]+\.py)` \|", HOW_IT_WORKS, re.MULTILINE)
    assert len(numbered) == 5


def test_the_token_counts_of_the_two_towers_are_true() -> None:
    side = int(re.search(r"One image of (\d+) x \1 pixels", HOW_IT_WORKS)[1])
    shape, encoder = SHAPES["4b"], RadDinoEncoder.card
    limits = OFFICIAL_PIXEL_LIMITS["min_pixels"], OFFICIAL_PIXEL_LIMITS["max_pixels"]
    assert smart_resize(side, side, 32, *limits) == (side, side)
    patches, tokens = side // 16, side // 32
    grid = encoder.input_size // encoder.patch_size
    for fact in (
        f"{patches} x {patches} = {patches**2:,} patches<br/>width {shape['vision']['hidden_size']:,}",
        f"{tokens} x {tokens} = {tokens**2:,} tokens<br/>width {shape['text']['hidden_size']:,}",
        f"{len(shape['vision']['deepstack_visual_indexes'])} inner layers",
        f"resized to {encoder.input_size} x {encoder.input_size} pixels",
        f"{encoder.patch_size}-pixel patches<br/>{grid} x {grid} = {encoder.tokens:,} patches",
        f"{encoder.tokens:,} patches<br/>width {encoder.hidden_size}",
        f"{grid} x {grid} = {encoder.tokens:,} tokens<br/>width {shape['text']['hidden_size']:,}",
    ):
        assert fact in DIAGRAMS[1]

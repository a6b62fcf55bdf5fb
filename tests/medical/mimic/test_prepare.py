"""Tests of the conversion of MIMIC-CXR as a whole: output files, speed, and inputs that stay unchanged."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.errors import UserError
from qwenvl.medical.mimic.prepare import find_image_root
from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic
from qwenvl.tools.prepare_mimic_cxr import main
from tests.medical.mimic.mimic_tree import Tree, read_stats


def test_the_output_is_read_by_the_training_data_layer(tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SyntheticOptions(studies=40, image_size=16))
    main(["--jpg_root", str(root), "--reports", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]
         + ["--views", "study", "--prior", "both", "--context", "indication", "technique", "comparison"])  # fmt: skip
    annotations = read_annotations(str(tmp_path / "out" / "mimic_train.json"), "", BadSampleTracker())
    assert len(annotations.records) == read_stats(tmp_path / "out")["records"]["train"] > 20
    assert max(len(record.images) for record in annotations.records) == 3


def test_workers_folder_and_zip_give_the_same_bytes(tmp_path: Path):
    folder = build_synthetic_mimic(tmp_path / "a", SyntheticOptions(studies=300, image_size=16))
    packed = build_synthetic_mimic(tmp_path / "b", SyntheticOptions(studies=300, image_size=16, zip_reports=True))
    outputs = []
    for number, (root, reports, workers) in enumerate(
        [(folder, folder, "1"), (folder, folder, "2"), (packed, packed / "mimic-cxr-reports.zip", "2")]
    ):
        out = tmp_path / f"out{number}"
        main(["--jpg_root", str(root), "--reports", str(reports), "--out", str(out), "--workers", workers]
             + ["--paths", "relative", "--prior", "both"])  # fmt: skip
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]["mimic_train.json"]) > 10_000


def test_conversion_is_fast_enough_for_the_whole_set(tmp_path: Path):
    """The aim is 2,000 studies per second; one process on a busy machine must reach half of it."""
    root = build_synthetic_mimic(tmp_path / "a", SyntheticOptions(studies=3000, image_size=16, zip_reports=True))
    started = time.perf_counter()
    main(["--jpg_root", str(root), "--reports", str(root / "mimic-cxr-reports.zip"), "--out", str(tmp_path / "out")]
         + ["--workers", "1"])  # fmt: skip
    assert 3000 / (time.perf_counter() - started) > 1000


def test_nothing_is_written_when_nothing_could_be_converted(tree: Tree, convert, tmp_path: Path):
    with pytest.raises(UserError, match="no study could be converted.*no report file"):
        convert(tree.study(10000001, 50000001, report=None).study(10000002, 50000002, report=None).write())
    assert list((tmp_path / "out").iterdir()) == []


def test_an_earlier_output_is_kept_unless_overwrite_is_given(tree: Tree, convert, tmp_path: Path):
    root = tree.study(10000001, 50000001).write()
    convert(root)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="already holds mimic_train.json"):
        main(["--jpg_root", str(root), "--reports", str(root), "--out", str(tmp_path / "out")])
    table = root / "mimic-cxr-2.0.0-metadata.csv"
    table.write_text(table.read_text() + "broken\n")
    with pytest.raises(UserError):
        convert(root)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_originals_are_only_read(tree: Tree, convert):
    root = tree.study(10000001, 50000001).write()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    convert(root, "--prior", "both")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()} == before


def test_statistics_contain_counts_and_no_text_of_a_report(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001).study(10000001, 50000002, split="test")
    convert(tree.write(), "--prior", "both")

    def leaves(value: Any) -> list[Any]:
        return [leaf for item in value.values() for leaf in leaves(item)] if isinstance(value, dict) else [value]

    stats = read_stats(tmp_path / "out")
    assert all(type(leaf) is int for leaf in leaves(stats))
    assert stats["records"] == {"train": 1, "validate": 0, "test": 1}
    assert "10000001" not in json.dumps(stats)


@pytest.mark.parametrize("options", [["--split_csv"], ["--labels", "chexpert", "--labels_csv"], ["--llava_rad"]])
def test_an_input_in_the_output_folder_is_never_overwritten(tree: Tree, tmp_path: Path, options: list[str]):
    root, out = tree.study(10000001, 50000001).write(), tmp_path / "out"
    out.mkdir()
    (out / "mimic_train.json").write_text("[]")
    command = ["--jpg_root", str(root), "--out", str(out), "--overwrite", *options, str(out / "mimic_train.json")]
    with pytest.raises(UserError, match="mimic_train.json is what this command reads"):
        main(command if "--llava_rad" in options else [*command, "--reports", str(root)])
    assert (out / "mimic_train.json").read_text() == "[]"


@pytest.mark.parametrize("folder", ["", "files"])
def test_the_image_folder_is_the_given_one_or_its_folder_files(tmp_path: Path, folder: str):
    (tmp_path / folder / "p10").mkdir(parents=True)
    assert find_image_root(tmp_path) == tmp_path / folder


def test_a_folder_without_images_is_reported_with_what_was_found(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder; give --jpg_root"):
        find_image_root(tmp_path / "none")
    with pytest.raises(UserError, match="no folders p10 to p19 .* found nothing; give --jpg_root"):
        find_image_root(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="found images; give --jpg_root"):
        find_image_root(tmp_path)

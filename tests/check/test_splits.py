"""Tests of leaks between training and evaluation data: files, equal content, subjects."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwenvl.check.splits import find_leaks, find_shared_subjects
from tests.check.conftest import make_record, row, valid_rows, write


def test_an_image_in_training_and_evaluation_is_reported_for_the_training_record(check, images: Path):
    (images / "copy.png").write_bytes((images / "image3.png").read_bytes())
    train_file = write(images / "train.json", valid_rows(5))
    eval_file = write(images / "valid.json", [row("copy.png", "Other words."), row("image7.png", "Seven.")])
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [(each["file"], each["row"], each["check"]) for each in outcome.problems] == [
        (str(train_file), "row 3", "leak")
    ]
    reason = outcome.problems[0]["reason"]
    assert (
        reason.startswith(f"a file of the same content, {images / 'copy.png'}, is in")
        and f"{eval_file} row 0" in reason
    )
    assert [each["id"] for each in outcome.clean()] == [0, 1, 2, 4]
    assert outcome.clean("eval_clean.json") == json.loads(eval_file.read_text())
    assert check(train_file, "--eval_dataset_use", eval_file, "--same_picture", "path", out="path").code == 0


def test_one_file_under_two_names_in_training_and_evaluation_is_called_that(check, images: Path):
    os.link(images / "image3.png", images / "link.png")
    train_file = write(images / "train.json", valid_rows(5))
    outcome = check(train_file, "--eval_dataset_use", write(images / "valid.json", [row("link.png", "Words.")]))
    assert [each["reason"].partition(" in the")[0] for each in outcome.problems] == ["the same file is"]


@pytest.mark.parametrize(("key", "given", "held_out"), [("subject_id", 7, "7"), ("patient_id", "p7", "p7")])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_subject_in_training_and_evaluation_is_a_leak(check, images: Path, key, given, held_out, suffix: str):
    rows = [row(f"image{n}.png", f"It is {n}.", id=n, **{key: given if n in (1, 3) else n + 100}) for n in range(5)]
    train_file = images / f"train.{suffix}"
    train_file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    eval_file = write(
        images / "valid.json", [row("image7.png", "Seven.", **{key: held_out}), row("image6.png", "Six.")]
    )
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [each["check"] for each in outcome.problems] == ["leak", "leak"]
    expected = f"{key} {given} is in the evaluation data, too ({eval_file} row 0): keep each subject in one of the two"
    assert {each["reason"] for each in outcome.problems} == {expected}
    assert [each["id"] for each in outcome.clean()] == [0, 2, 4]


def test_frames_in_training_and_evaluation_are_a_leak_whatever_their_rate(check, images: Path):
    (images / "copy.png").write_bytes((images / "image1.png").read_bytes())

    def clip(frames: list[str], fps: int, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
        return {"video": frames, "fps": fps, "conversations": turns}

    train_file = write(
        images / "train.json",
        [clip(["image0.png", "image1.png"], 2, "A."), clip(["image2.png", "image3.png"], 2, "B.")],
    )
    outcome = check(
        train_file, "--eval_dataset_use", write(images / "valid.json", [clip(["image0.png", "copy.png"], 4, "C.")])
    )
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "leak")]
    assert outcome.problems[0]["path"] == str(images / "image0.png")


def test_a_leak_names_the_evaluation_record_and_how_the_files_are_equal(tmp_path: Path):
    (tmp_path / "a.png").touch()
    os.link(tmp_path / "a.png", tmp_path / "link.png")
    paths = {name: str(tmp_path / f"{name}.png") for name in ("a", "link", "copy", "other")}
    ids = {paths["a"]: 1, paths["link"]: 1, paths["copy"]: 1, paths["other"]: 2}
    held_out = [make_record(7, "Q", "A", source="valid.json", images=(paths["a"],))]
    records = [make_record(row, "Q", "A", images=(path,)) for row, path in enumerate(paths.values())]
    found = {bad.location: bad.reason for bad in find_leaks(records, held_out, ids)}
    place = "in the evaluation data (valid.json row 7): keep it in one of the two"
    assert found == {
        "row 0": f"the same file is {place}",
        "row 1": f"the same file is {place}",
        "row 2": f"a file of the same content, {paths['a']}, is {place}",
    }


@pytest.mark.parametrize("value", [7, "7", 7.0])
def test_subjects_are_compared_as_text_and_by_key(tmp_path: Path, value: Any):
    rows = [{"subject_id": value}, {"patient_id": 7}, {"subject_id": ""}, {"subject_id": [7]}, {"subject_id": 8}]
    train_file, eval_file = write(tmp_path / "train.json", rows), write(tmp_path / "valid.json", [{"subject_id": 7}])
    records = [make_record(row, "Q", "A", source=str(train_file)) for row in range(len(rows))]
    held_out = [make_record(0, "Q", "A", source=str(eval_file))]
    assert [bad.location for bad in find_shared_subjects(records, held_out)] == ["row 0"]

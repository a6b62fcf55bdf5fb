"""Tests of leaks between training and evaluation data: files, equal content, subjects."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.check.conftest import row, sound_rows, write


def test_a_picture_in_training_and_evaluation_is_told_of_the_training_record(check, films: Path):
    (films / "copy.png").write_bytes((films / "film3.png").read_bytes())
    train_file = write(films / "train.json", sound_rows(5))
    eval_file = write(films / "valid.json", [row("copy.png", "Other words."), row("film7.png", "Seven.")])
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [(each["file"], each["row"], each["check"]) for each in outcome.problems] == [
        (str(train_file), "row 3", "leak")
    ]
    reason = outcome.problems[0]["reason"]
    assert (
        reason.startswith(f"a file of the same content, {films / 'copy.png'}, is in") and f"{eval_file} row 0" in reason
    )
    assert [each["id"] for each in outcome.clean()] == [0, 1, 2, 4]
    assert outcome.clean("eval_clean.json") == json.loads(eval_file.read_text())
    assert check(train_file, "--eval_dataset_use", eval_file, "--same_picture", "path", out="path").code == 0


def test_one_file_under_two_names_in_training_and_evaluation_is_called_that(check, films: Path):
    os.link(films / "film3.png", films / "link.png")
    train_file = write(films / "train.json", sound_rows(5))
    outcome = check(train_file, "--eval_dataset_use", write(films / "valid.json", [row("link.png", "Words.")]))
    assert [each["reason"].partition(" in the")[0] for each in outcome.problems] == ["the same file is"]


@pytest.mark.parametrize(("key", "given", "held_out"), [("subject_id", 7, "7"), ("patient_id", "p7", "p7")])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_subject_in_training_and_evaluation_is_a_leak(check, films: Path, key, given, held_out, suffix: str):
    rows = [row(f"film{n}.png", f"It is {n}.", id=n, **{key: given if n in (1, 3) else n + 100}) for n in range(5)]
    train_file = films / f"train.{suffix}"
    train_file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    eval_file = write(films / "valid.json", [row("film7.png", "Seven.", **{key: held_out}), row("film6.png", "Six.")])
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [each["check"] for each in outcome.problems] == ["leak", "leak"]
    expected = f"{key} {given} is in the evaluation data too ({eval_file} row 0): keep a subject in one"
    assert {each["reason"] for each in outcome.problems} == {expected}
    assert [each["id"] for each in outcome.clean()] == [0, 2, 4]


def test_frames_in_training_and_evaluation_are_a_leak_whatever_their_rate(check, films: Path):
    (films / "copy.png").write_bytes((films / "film1.png").read_bytes())

    def clip(frames: list[str], fps: int, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
        return {"video": frames, "fps": fps, "conversations": turns}

    train_file = write(
        films / "train.json", [clip(["film0.png", "film1.png"], 2, "A."), clip(["film2.png", "film3.png"], 2, "B.")]
    )
    outcome = check(
        train_file, "--eval_dataset_use", write(films / "valid.json", [clip(["film0.png", "copy.png"], 4, "C.")])
    )
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "leak")]
    assert outcome.problems[0]["path"] == str(films / "film0.png")

"""Tests of what counts as a duplicate: equal files, and records that repeat another one."""

import os
from pathlib import Path

import pytest

from qwenvl.check.duplicates import find_duplicates, media_ids
from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic
from qwenvl.tools import prepare_mimic_cxr
from tests.check.conftest import make_record, row, valid_rows, write


@pytest.mark.parametrize(
    ("flags", "repeated"),
    [
        ([], ["row 1", "row 2", "row 3", "row 5"]),
        (["--same_picture", "path"], ["row 2", "row 3", "row 5"]),
        (["--duplicates", "record"], ["row 1", "row 2", "row 5"]),
        (["--duplicates", "none"], []),
    ],
)
def test_the_flags_define_what_a_duplicate_is(check, images: Path, flags: list[str], repeated: list[str]):
    (images / "copy.png").write_bytes((images / "image1.png").read_bytes())
    rows = [
        row("image1.png", "No."),
        row("copy.png", "No."),
        row("image1.png", "No."),
        row("image1.png", "No.", "Is there fluid?"),
        row(None, "No.", "Is it text?"),
        row(None, "No.", "Is it text?"),
        row(None, "No.", "Is it an image?"),
        row("image2.png", "No."),
        row("image1.png", "Yes."),
    ]
    assert [each["row"] for each in check(write(images / "train.json", rows), *flags).problems] == repeated


def test_files_are_equal_by_their_bytes_even_where_size_and_ends_are(tmp_path: Path):
    middle = {"a": b"x", "b": b"y", "c": b"x"}
    for name, byte in middle.items():
        (tmp_path / name).write_bytes(b"0" * 10_000 + byte + b"0" * 10_000)
    os.link(tmp_path / "b", tmp_path / "d")
    (tmp_path / "e").write_bytes(b"0")
    ids = media_ids([str(tmp_path / name) for name in "abcdef"])
    same = {left + right for left in "abcdef" for right in "abcdef" if left < right}
    same = {pair for pair in same if ids[str(tmp_path / pair[0])] == ids[str(tmp_path / pair[1])]}
    assert same == {"ac", "bd"}


def test_a_dataset_named_twice_is_not_its_own_duplicate(check, images: Path):
    dataset = write(images / "train.json", valid_rows())
    outcome = check(f"{dataset},{dataset}%50")
    assert (outcome.code, outcome.clean()) == (0, valid_rows())
    assert outcome.value("records") == "12"


def test_the_synthetic_archive_has_no_duplicates_of_its_own(check, tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SyntheticOptions(studies=60, image_size=32))
    command = ["--jpg_root", root, "--reports", root, "--out", tmp_path / "json", "--workers", 1]
    assert prepare_mimic_cxr.main([str(word) for word in command]) == 0
    train_file, valid_file = (tmp_path / "json" / f"mimic_{name}.json" for name in ("train", "valid"))
    outcome = check(train_file, "--eval_dataset_use", valid_file)
    assert (outcome.code, outcome.problems) == (0, [])


IDS = {"a.png": 1, "copy.png": 1, "b.png": 2}


@pytest.mark.parametrize(
    ("same", "question", "answer", "media", "reason"),
    [
        ("answer", "Other?", "Yes.", "a.png", "the same media and the same answer as train.json row 0"),
        ("answer", "Other?", "Yes.", "copy.png", "the same content of its media and the same answer as"),
        ("answer", "Q?", "No.", "a.png", None),
        ("answer", "Q?", "Yes.", "b.png", None),
        ("record", "Other?", "Yes.", "a.png", None),
        ("record", "Q?", "Yes.", "a.png", "the same media and the same turns as"),
    ],
)
def test_a_record_repeats_another_by_media_and_text(same: str, question: str, answer: str, media: str, reason):
    records = [make_record(0, "Q?", "Yes.", images=("a.png",)), make_record(1, question, answer, images=(media,))]
    found = list(find_duplicates(records, IDS, same))
    assert [(bad.location, bad.path) for bad in found] == ([] if reason is None else [("row 1", media)])
    assert reason is None or found[0].reason.startswith(reason)


def test_records_of_text_are_compared_by_all_turns():
    records = [make_record(row, question, "Yes.") for row, question in enumerate(["Q?", "P?", "Q?"])]
    assert [(bad.location, bad.reason) for bad in find_duplicates(records, {}, "answer")] == [
        ("row 2", "the same text as train.json row 0")
    ]


def test_paths_are_compared_where_content_is_not_asked_for_and_missing_files_are_unlike(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    paths = [str(tmp_path / name) for name in ("a", "b", "none", "nothing")]
    assert len(set(media_ids(paths).values())) == 3
    assert media_ids(paths, by_content=False) == {path: path for path in paths}

"""Tests of the checks that training does not make: paths, boxes, roles and full decoding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.check.records import find_outside, find_swapped_turns, find_wrong_boxes, media_by_kind
from qwenvl.data.annotations import Record
from qwenvl.data.media.sizes import ImageSize, Unreadable
from qwenvl.data.records import Turn
from tests.check.conftest import make_record, row, write


def test_a_truncated_image_is_found_by_full_decoding_alone(check, images: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "whole.jpg")
    (images / "half.jpg").write_bytes((images / "whole.jpg").read_bytes()[:2000])
    dataset = write(images / "train.json", [row("whole.jpg", "A."), row("half.jpg", "B.")])
    assert check(dataset).code == 0
    outcome = check(dataset, "--decode", "full", "--workers", "2", out="full")
    assert [(problem["row"], problem["check"]) for problem in outcome.problems] == [("row 1", "file")]
    assert "truncated" in outcome.problems[0]["reason"]


def test_a_video_is_decoded_too(check, media: Path, tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes((media / "clip.mp4").read_bytes()[:900])
    (tmp_path / "clip.mp4").write_bytes((media / "clip.mp4").read_bytes())
    rows = [row(None, f"See {name}.", video=name) for name in ("clip.mp4", "broken.mp4")]
    outcome = check(write(tmp_path / "train.json", rows), "--decode", "full")
    assert [(problem["row"], problem["check"]) for problem in outcome.problems] == [("row 1", "file")]
    assert outcome.clean() == rows[:1]


def test_a_record_whose_questions_and_answers_are_swapped_is_reported(check, images: Path):
    swapped = row("image1.png", "What is it?")
    swapped["conversations"] = [{"from": "gpt", "value": "A chest."}, {"from": "human", "value": "<image>What is it?"}]
    outcome = check(write(images / "train.json", [row("image0.png", "It is 0."), swapped]))
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 1", "turns")]
    assert "roles of its turns swapped" in outcome.problems[0]["reason"]


@pytest.mark.parametrize("decode", ["header", "full"])
def test_a_file_used_as_an_image_and_as_a_video_is_judged_in_each_use(check, media: Path, tmp_path: Path, decode: str):
    clip, red = str(media / "clip.mp4"), str(media / "red.png")
    rows = [row(clip, "A clip."), row(red, "Red."), row(None, "A clip.", video=clip), row(None, "Red.", video=red)]
    outcome = check(write(tmp_path / "uses.json", rows), "--decode", decode)
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "file"), ("row 3", "file")]
    assert len(outcome.clean()) == 2


def test_paths_out_of_the_folder_are_reported_unless_absolute_or_allowed(check, images: Path, tmp_path: Path):
    Image.new("L", (50, 60), 3).save(tmp_path / "stranger one.png")
    linked = tmp_path / "linked"
    linked.symlink_to(images)
    (images / "inner.png").symlink_to(images / "image5.png")
    (images / "away").symlink_to(tmp_path)
    rows = [
        row("../stranger one.png", "0"),
        row(str(tmp_path / "stranger one.png"), "1"),
        row((tmp_path / "stranger one.png").as_uri(), "2"),
        row("sub/../image1.png", "3"),
        row("inner.png", "4"),
        row("away/stranger one.png", "5"),
        row("image2.png", "see ../stranger one.png"),
    ]
    write(images / "train.json", rows)
    # The folder itself may be reached through a link.
    outcome = check(linked / "train.json")
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "outside"), ("row 5", "outside")]
    assert check(linked / "train.json", "--allow_outside", out="allowed").code == 0


@pytest.mark.parametrize(
    ("space", "answer", "valid"),
    [
        ("relative", '{"bbox_2d": [0, 0, 1000, 1000]}', True),
        ("relative", 'Here: ```json\n[{"bbox_2d": [10, 10, 20, 20], "label": "a"}]\n```', True),
        ("relative", 'First {"bbox_2d": [1, 1, 2, 2]} and {"bbox_2d": [1, 1, 2, 1002]}', False),
        ("absolute", '[{"bbox_2d": [0, 0, 96, 64]}]', True),
        ("absolute", '[{"bbox_2d": [0, 0, 64, 96]}]', False),
        ("none", '[{"bbox_2d": [0, 0, -5, 9000]}]', True),
    ],
)
def test_boxes_are_checked_in_the_given_coordinates(check, images: Path, space: str, answer: str, valid: bool):
    outcome = check(write(images / "train.json", [row("image0.png", answer)]), "--box_space", space)
    assert outcome.code == (0 if valid else 1)
    assert [each["check"] for each in outcome.problems] == ([] if valid else ["box"])


def test_frames_outside_the_folder_are_reported(check, images: Path):
    (images / "sub").mkdir()
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]
    outcome = check(
        write(
            images / "sub" / "train.json",
            [{"video": ["../image0.png", "../image1.png"], "fps": 2, "conversations": turns}],
        )
    )
    assert [each["check"] for each in outcome.problems] == ["outside"]


@pytest.mark.parametrize(
    ("space", "answer", "reason"),
    [
        ("relative", '[{"bbox_2d": [0, 0, 1000, 1000]}]', None),
        ("relative", '[{"bbox_2d": [0, 0, 1000, 1001]}]', "in relative coordinates"),
        (
            "relative",
            '[{"bbox_2d": [0, 0, 9]}, {"bbox_2d": [1, 1, 2, 2]}]',
            "1 of 2 bbox_2d in an answer is not",
        ),
        ("absolute", '[{"bbox_2d": [0, 0, 96, 64]}]', None),
        ("absolute", '[{"bbox_2d": [0, 0, 40, 90]}]', None),
        ("absolute", '[{"bbox_2d": [0, 0, 97, 64]}]', "in absolute coordinates"),
        ("relative", "no box", None),
    ],
)
def test_a_box_must_lie_in_one_of_the_images(space: str, answer: str, reason: str | None):
    sizes = {"wide.png": ImageSize(64, 96), "tall.png": ImageSize(96, 64), "lost.png": Unreadable("no such file")}
    record = make_record(3, "Where?", answer, images=("lost.png", "wide.png", "tall.png"))
    found = list(find_wrong_boxes([record], sizes, space))
    assert [(bad.location, bad.path) for bad in found] == ([] if reason is None else [("row 3", "lost.png")])
    assert reason is None or reason in found[0].reason


def test_boxes_in_a_question_are_not_checked():
    record = make_record(0, '{"bbox_2d": [5, 5, 1, 1]}', "Yes.", images=("a.png",))
    assert list(find_wrong_boxes([record], {"a.png": ImageSize(9, 9)}, "relative")) == []


def test_roles_are_swapped_only_where_both_ends_are():
    question, answer, system = Turn("user", "Q"), Turn("assistant", "A"), Turn("system", "S")
    turns = [(question, answer), (system, answer, question), (answer, question, answer), (question, answer, question)]
    records = [Record("train.json", row, each, location=f"row {row}") for row, each in enumerate(turns)]
    assert [bad.location for bad in find_swapped_turns(records)] == ["row 1"]


def test_links_out_of_the_folder_are_found_and_links_within_it_are_not(tmp_path: Path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for path in (tmp_path / "outside.png", tmp_path / "data" / "a.png"):
        path.touch()
    (tmp_path / "data" / "out.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "data" / "sub" / "in.png").symlink_to(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    names = ["a.png", "out.png", "sub/in.png", "up/outside.png"]
    records = [make_record(row, "Q", "A", images=(str(tmp_path / "data" / name),)) for row, name in enumerate(names)]
    found = list(find_outside(records, str(tmp_path / "data")))
    assert [bad.location for bad in found] == ["row 1", "row 3"]
    assert all(bad.reason.endswith(f"to {tmp_path / 'outside.png'}") for bad in found)


def test_media_are_named_by_their_kind():
    record = make_record(0, "Q", "A", images=("a",), videos=("b", "c"))
    assert media_by_kind(record) == (("image", ("a",)), ("video", ("b", "c")))

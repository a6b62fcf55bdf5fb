"""Tests of the checks that training does not make: paths, boxes, roles and full decoding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.check.conftest import row, write


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

"""Tests of the demo data: the split of the digits, and the annotation files of the demo images and videos."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.digits import NUM_HELD_OUT, SIZE, write_digits
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.media.videos import video_info

DEMO = Path(__file__).resolve().parents[2] / "demo"
BAD_SAMPLES = BadSampleTracker("error", 0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory):
    return write_digits(tmp_path_factory.mktemp("digits"))


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_scan_is_in_train_or_held_out_and_none_in_both(digits):
    train, held_out = ({record["image"] for record in read(path)} for path in digits)
    assert (len(train), len(held_out)) == (1797 - NUM_HELD_OUT, NUM_HELD_OUT)
    assert not train & held_out


def test_each_digit_is_held_out_often_enough_that_guessing_scores_low(digits):
    answers = Counter(record["conversations"][1]["value"] for record in read(digits.held_out))
    assert sorted(answers) == list("0123456789")
    assert max(answers.values()) < 0.2 * NUM_HELD_OUT


def test_digit_files_are_valid_datasets_of_images_with_one_digit_as_answer(digits):
    for record in load_datasets(str(digits.held_out), 0, BAD_SAMPLES).records:
        assert len(record.images) == 1
        assert record.turns[-1].text in "0123456789"
    with Image.open(record.images[0]) as image:
        assert image.size == (SIZE, SIZE)
        assert np.asarray(image).max() > 200


def test_the_same_seed_gives_the_same_split_and_another_one_another(digits, tmp_path: Path):
    assert write_digits(tmp_path).held_out.read_bytes() == digits.held_out.read_bytes()
    assert write_digits(tmp_path, seed=1).held_out.read_bytes() != digits.held_out.read_bytes()


def test_demo_files_are_valid_datasets():
    with_images = load_datasets(str(DEMO / "single_images.json"), 0, BAD_SAMPLES).records
    assert [len(record.images) for record in with_images] == [1] * len(with_images)
    assert any(record.turns[0].role == "system" for record in with_images)
    assert any(len(record.turns) == 4 for record in with_images)
    videos = load_datasets(str(DEMO / "video.json"), 0, BAD_SAMPLES).records
    assert [len(record.videos) for record in videos] == [1, 1]
    assert [video_info(record.videos[0]).total_frames for record in videos] == [32, 16]


def test_demo_media_stay_small():
    media = [path for folder in ("images", "videos") for path in (DEMO / folder).iterdir()]
    assert sum(path.stat().st_size for path in media) < 300_000


@pytest.mark.parametrize(("label", "channel"), [("red circle", 0), ("green square", 1), ("blue triangle", 2)])
def test_boxes_of_the_grounding_record_enclose_their_shapes(label: str, channel: int):
    record = next(
        record for record in read(DEMO / "single_images.json") if "every" in record["conversations"][0]["value"]
    )
    boxes = {entry["label"]: entry["bbox_2d"] for entry in json.loads(record["conversations"][1]["value"])}
    pixels = np.asarray(Image.open(DEMO / record["image"]).convert("RGB")).astype(int)
    others = [index for index in range(3) if index != channel]
    rows, columns = np.nonzero((pixels[..., channel] > 100) & (pixels[..., others].max(-1) < 100))
    height, width = pixels.shape[:2]
    drawn = [columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height]
    assert np.allclose(np.array(boxes[label]) / 1000, drawn, atol=0.005)

"""Tests of videos given as frames: sampled as a video file is, and refused with the reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from qwenvl.data.annotations import BadSampleTracker, Record, Turn, read_annotations
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.data.media.frames import frames_info, frames_stamp, load_clip
from qwenvl.data.media.store import MediaStore, frames_in_folder
from qwenvl.errors import UserError


@pytest.fixture
def frames(tmp_path: Path) -> list[str]:
    """Return 12 frames of 64 x 48 pixels, each one gray level lighter by 20."""
    paths = [str(tmp_path / f"{number}.png") for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("L", (64, 48), 20 * number).save(path)
    return paths


@pytest.fixture
def clip(tmp_path: Path, frames: list[str]) -> str:
    """Return the path of the list of these frames at 4 a second."""
    return MediaStore(str(tmp_path / "cache")).keep_frames(frames, 4.0)


def test_frames_are_sampled_by_their_rate_as_those_of_a_video(clip: str, own_processor: ProcessorMixin):
    processor = own_processor.video_processor
    processor.fps, processor.min_frames, processor.max_frames = 2.0, 4, 8
    sampled, metadata = load_clip(clip, processor)
    # 3 seconds at 2 frames a second are 6.
    assert sampled.shape == (6, 3, 48, 64)
    assert [int(frame.float().mean()) // 20 for frame in sampled] == list(metadata.frames_indices)
    assert (metadata.fps, metadata.total_num_frames, metadata.duration) == (4.0, 12, 3.0)
    processor.max_frames = 4
    assert len(load_clip(clip, processor)[0]) == 4


def test_a_sample_of_frames_has_as_many_tokens_as_were_counted(
    tmp_path: Path, clip: str, own_processor: ProcessorMixin
):
    encoder = RecordEncoder(own_processor)
    record = Record("t.json", 0, (Turn("user", "<video>Q?"), Turn("assistant", "A.")), videos=(clip,))
    sizes = read_media_sizes([record], str(tmp_path / "cache"))
    counts = TokenCounter(encoder).count([record], sizes)
    sample = encoder.encode(record)
    assert counts.total.tolist() == [len(sample["input_ids"])]
    assert "pixel_values_videos" in sample


def test_frames_of_different_sizes_are_refused_by_name(frames: list[str], clip: str, own_processor: ProcessorMixin):
    Image.new("L", (48, 64)).save(frames[11])
    for look in (frames_info, lambda path: load_clip(path, own_processor.video_processor)):
        with pytest.raises(UserError, match=r"11.png: a frame of 48 x 64 pixels in a video that begins with 64 x 48"):
            look(clip)


def test_a_changed_frame_is_looked_at_again(tmp_path: Path, frames: list[str], clip: str):
    before = frames_stamp(clip)
    Image.new("L", (64, 48), 3).save(frames[5])
    assert frames_stamp(clip) != before
    record = Record("t.json", 0, (), videos=(clip,))
    assert read_media_sizes([record], str(tmp_path / "cache"))[clip].height == 48
    for path in frames:
        Image.new("L", (64, 96)).save(path)
    assert read_media_sizes([record], str(tmp_path / "cache"))[clip].height == 96


def test_the_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path):
    for name in ("f_10.png", "f_9.PNG", "f_1.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [Path(path).name for path in frames_in_folder(str(tmp_path))] == ["f_1.jpg", "f_9.PNG", "f_10.png"]


def read(folder: Path, row: str) -> Record:
    """Return the record of one row, a question and an answer with `row` besides."""
    (folder / "t.json").write_text(f'[{{"query": "<video>Q?", "response": "A.", {row}}}]')
    (record,) = read_annotations(str(folder / "t.json"), str(folder), BadSampleTracker(), str(folder / "c")).records
    return record


def test_equal_frames_are_one_file_and_the_rate_belongs_to_it(tmp_path: Path, frames: list[str]):
    listed = read(tmp_path, '"videos": [["0.png", "1.png"]], "fps": 2').videos
    assert read(tmp_path, '"video": ["0.png", "1.png"]').videos == listed
    assert read(tmp_path, '"video": {"frames": ["0.png", "1.png"], "fps": 2}').videos == listed
    assert read(tmp_path, '"video": ["0.png", "1.png"], "fps": [3]').videos != listed
    assert frames_info(listed[0]).fps == 2.0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('"video": ["0.png", "no.png"]', "no.png: no such file"),
        ('"video": ["0.png", "1.png"], "fps": [1, 2]', "2 `fps` for 1 video"),
        ('"video": ["0.png", "1.png"], "fps": -1', "fps is -1, expected the number of frames"),
        ('"video": "empty"', "a folder with 0 image"),
        ('"video": [["0.png"]]', "a video of 1 frame"),
    ],
)
def test_frames_that_make_no_video_are_refused(tmp_path: Path, frames: list[str], row: str, expected: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=expected):
        read(tmp_path, row)


def test_pixels_of_frames_are_those_of_images(clip: str, frames: list[str], own_processor: ProcessorMixin):
    sampled, metadata = load_clip(clip, own_processor.video_processor)
    expected = np.asarray(Image.open(frames[metadata.frames_indices[-1]]).convert("RGB"))
    assert (sampled[-1].permute(1, 2, 0).numpy() == expected).all()

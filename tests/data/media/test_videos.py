"""Tests of reading videos: what is sampled, and how a video that cannot be read is named."""

import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen3VLVideoProcessor

from demo.media import write_video
from qwenvl.data.media.videos import VideoError, VideoInfo, load_video, sample_frame_indices, video_info
from qwenvl.errors import UserError

READERS = pytest.mark.parametrize("read", [video_info, lambda path: load_video(path, Qwen3VLVideoProcessor())])


def ramp(folder: Path, frames: int = 16, fps: int = 8, size: tuple[int, int] = (96, 64)) -> str:
    """Write a video of `size` (width, height) whose frame i is gray of value 15 * i."""
    images = [Image.new("RGB", size, (15 * index,) * 3) for index in range(frames)]
    return str(write_video(folder / "ramp.mp4", images, fps))


def test_info_has_frames_rate_and_size(tmp_path: Path):
    assert video_info(ramp(tmp_path, frames=9, fps=3)) == VideoInfo(9, 3.0, 64, 96)


def test_frames_are_the_ones_that_the_processor_would_sample_itself(tmp_path: Path):
    path = ramp(tmp_path)
    processor = Qwen3VLVideoProcessor(fps=2, min_frames=2)
    frames, metadata = load_video(path, processor)
    assert frames.dtype == torch.uint8
    assert frames.shape == (4, 3, 64, 96)
    assert metadata.frames_indices == [0, 5, 10, 15] == sample_frame_indices(video_info(path), processor)
    np.testing.assert_allclose(frames.float().mean((1, 2, 3)), [0, 75, 150, 225], atol=3)
    assert metadata.timestamps == [0, 5 / 8, 10 / 8, 15 / 8]
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (16, 8.0, 2.0)


def write_sound(path: Path) -> None:
    """Write a file that holds a second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


UNEVEN = [0.0, 0.1, 0.2, 0.3, 1.3, 2.3, 2.4, 2.5, 5.0, 5.04, 5.08, 9.0, 9.5, 10.0, 10.5, 12.0]


def write_uneven(path: Path, start: float = 0.0) -> str:
    """Write a video whose frame i is gray of value 15 * i and is shown at `start` + UNEVEN[i] seconds."""
    tick = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = tick
        for index, seconds in enumerate(UNEVEN):
            frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 15 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((start + seconds) / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(("name", "start"), [("x.mp4", 0), ("x.mkv", 0), ("late.mkv", 3)])
def test_at_a_variable_rate_the_prompt_has_the_frames_true_times(tmp_path: Path, processor, name: str, start: int):
    path = write_uneven(tmp_path / name, start)
    with av.open(path) as container:  # an independent reading, which counts from the container's start
        shown = [(float(frame.time) - start, frame.to_ndarray(format="rgb24").mean()) for frame in container.decode()]
    video_processor = Qwen3VLVideoProcessor(fps=1, min_frames=2, max_frames=99, cap_pixels_per_frame=False)
    frames, metadata = load_video(path, video_processor)
    indices = sample_frame_indices(video_info(path), video_processor)
    # A frame a second of the 12 that it lasts, though an mkv calls itself 25 frames a second.
    assert len(indices) == 12
    np.testing.assert_allclose(metadata.timestamps, [shown[index][0] for index in indices], atol=0.002)
    np.testing.assert_allclose(metadata.timestamps, np.array(UNEVEN)[indices], atol=0.002)
    np.testing.assert_allclose(frames.float().mean((1, 2, 3)), [shown[index][1] for index in indices], atol=3)
    inputs = {"video_metadata": [metadata], "video_grid_thw": torch.tensor([[6, 2, 2]])}
    written = re.findall(r"<([\d.]+) seconds>", processor.replace_video_token(inputs, 0))
    pairs = np.array(metadata.timestamps).reshape(6, 2).mean(1)
    np.testing.assert_allclose(np.array(written, float), pairs, atol=0.0501)


def test_a_constant_rate_that_a_container_rounds_to_milliseconds_is_constant(tmp_path: Path):
    images = [Image.new("RGB", (128, 96))] * 40
    assert video_info(str(write_video(tmp_path / "x.mkv", images, 30))).times is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fps": 4, "min_frames": 2}, 8),
        ({"fps": 1, "min_frames": 6}, 6),
        ({"fps": 8, "max_frames": 5}, 5),
        ({"fps": 1, "min_frames": 99, "max_frames": 200}, 16),
    ],
)
def test_rate_and_frame_limits_act(tmp_path: Path, settings: dict, expected: int):
    assert len(load_video(ramp(tmp_path), Qwen3VLVideoProcessor(**settings))[0]) == expected


def test_the_processor_takes_the_frames_as_they_are(tmp_path: Path):
    processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=False, min_frames=2)
    frames, metadata = load_video(ramp(tmp_path), processor)
    settings = {"video_metadata": [metadata], "do_sample_frames": False, "return_tensors": "pt"}
    assert processor(videos=[frames], **settings)["video_grid_thw"][0, 0] == 2


@READERS
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.mp4", "no such video file"),
        (".", "a folder, expected one video file"),
        ("empty.mp4", "the video file is empty"),
        ("text.mp4", "cannot decode the video"),
        ("image.mp4", "cannot decode the video"),
        ("one_frame.mp4", "1 frame\\(s\\), expected at least 2: give a single frame as an image"),
        ("cut.mp4", "cannot decode the video"),
        ("sound.mp4", "cannot decode the video .*no video stream"),
    ],
)
def test_a_video_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str, reason: str, read):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.mp4")
    shutil.move(ramp(tmp_path, frames=1), tmp_path / "one_frame.mp4")
    (tmp_path / "cut.mp4").write_bytes(Path(ramp(tmp_path)).read_bytes()[:1000])
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(VideoError, match=reason) as error:
        read(str(tmp_path / name))
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)


@READERS
def test_narrow_frames_are_read(tmp_path: Path, read):
    read(ramp(tmp_path, size=(48, 64)))


class Clips(Dataset):
    """Four times the same video."""

    def __init__(self, path: str):
        self.path = path

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_video(self.path, Qwen3VLVideoProcessor())[0]


def test_forked_workers_read_videos_after_the_main_process_did(media: Path):
    clips = Clips(str(media / "clip.mp4"))
    expected = clips[0]
    loader = DataLoader(clips, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert all(torch.equal(frames, expected) for frames in loader)

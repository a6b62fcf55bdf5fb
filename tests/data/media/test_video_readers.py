"""Tests of the two video readers against each other, and of PyAV against what was written."""

import logging
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from transformers import Qwen3VLVideoProcessor

from qwenvl.data.media import video_readers
from qwenvl.data.media.video_readers import DecodeError, DecordReader, PyAVReader, open_video, video_reader_class
from qwenvl.data.media.videos import VideoInfo, load_video, video_info
from tests.data.media.test_videos import write_uneven

RANDOM = np.random.default_rng(0)
NUM_FRAMES = 40
SIZE = (96, 160)
B_FRAMES = {"bf": "3", "g": "12"}
OPEN_GOP = {"bf": "3", "g": "12", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}
# Frame numbers out of order, one of them twice, on keyframes and between them.
SOME = [39, 2, 2, 12, 13, 36, 0]


def write(path: Path, codec: str = "libx264", options: dict[str, str] | None = None, pixels: str = "yuv420p") -> str:
    """Write a pattern that moves 3 pixels a frame, at 25 frames a second."""
    pattern = RANDOM.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixels
        for index in range(NUM_FRAMES):
            image = np.ascontiguousarray(np.roll(pattern, 3 * index, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def turn(path: str, degrees: int) -> None:
    """Write into an MP4 file that its frames are to be shown turned clockwise."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(Path(path).read_bytes())
    one = 1 << 16
    matrix = (cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *matrix)
    Path(path).write_bytes(data)


def cut_start(path: str, num_frames: int) -> str:
    """Change an MP4 file's edit list so that its first frames are decoded and not shown."""
    data = bytearray(Path(path).read_bytes())
    start = data.index(b"elst") + 12
    duration, first = struct.unpack_from(">Ii", data, start)
    with av.open(path) as container:
        ticks = container.streams.video[0].time_base.denominator // 25
    struct.pack_into(">Ii", data, start, duration - 40 * num_frames, first + ticks * num_frames)
    Path(path).write_bytes(data)
    return path


def read(reader_class: type, path: str, indices: list[int]) -> np.ndarray:
    reader = reader_class(path)
    try:
        return reader.frames(indices)
    finally:
        reader.close()


@pytest.fixture
def decord() -> ModuleType:
    """Return decord, or skip the test on a platform where it does not load."""
    return pytest.importorskip("decord")


def with_each(decord: ModuleType, monkeypatch: pytest.MonkeyPatch, function: Callable[[], Any]) -> list:
    """Return what a function gives with decord, and what it gives without."""
    results = []
    for module in (decord, None):
        monkeypatch.setitem(sys.modules, "decord", module)
        video_readers._choose_reader.cache_clear()
        results.append(function())
    return results


KINDS = {
    "closed.mp4": {},
    "b_frames.mp4": {"options": B_FRAMES},
    "b_frames.mkv": {"options": B_FRAMES},
    "full_range.mp4": {"pixels": "yuvj420p"},
    "444.mp4": {"pixels": "yuv444p"},
    "no_b_frames.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "flash.flv": {"options": B_FRAMES},
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_equal_to_the_last_bit_and_so_are_times_and_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_choice: None, decord: ModuleType, name: str
):
    path = write(tmp_path / name, **KINDS[name])
    for indices in (list(range(NUM_FRAMES)), SOME):
        np.testing.assert_array_equal(read(DecordReader, path, indices), read(PyAVReader, path, indices))
    of_decord, of_pyav = with_each(decord, monkeypatch, lambda: video_info(path))
    assert of_decord == of_pyav == VideoInfo(NUM_FRAMES, 25.0, *SIZE)
    samples = with_each(decord, monkeypatch, lambda: load_video(path, Qwen3VLVideoProcessor(fps=4)))
    assert np.array_equal(samples[0][0], samples[1][0])
    assert samples[0][1] == samples[1][1]


@pytest.mark.parametrize(("name", "start"), [("x.mp4", 0), ("x.mkv", 0), ("late.mkv", 3), ("x.mov", 0)])
def test_frames_times_and_sampling_are_equal_at_a_variable_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_choice: None, decord: ModuleType, name: str, start: int
):
    path = write_uneven(tmp_path / name, start)
    of_decord, of_pyav = with_each(decord, monkeypatch, lambda: video_info(path))
    assert of_decord == of_pyav and of_pyav.times is not None
    processor = Qwen3VLVideoProcessor(fps=1, min_frames=2, max_frames=99)
    samples = with_each(decord, monkeypatch, lambda: load_video(path, processor))
    assert np.array_equal(samples[0][0], samples[1][0])
    assert samples[0][1] == samples[1][1]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_of_a_turned_video_are_upright_with_both(tmp_path: Path, decord: ModuleType, degrees: int):
    path = write(tmp_path / "x.mp4")
    lying = read(PyAVReader, path, SOME)
    turn(path, degrees)
    upright = read(PyAVReader, path, SOME)
    np.testing.assert_array_equal(upright, np.rot90(lying, -degrees // 90, (1, 2)))
    np.testing.assert_array_equal(upright, read(DecordReader, path, SOME))


def test_ten_bits_differ_by_a_few_levels(tmp_path: Path, decord: ModuleType):
    height, width = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([width * 255 / SIZE[1], height * 255 / SIZE[0], 255 - width * 128 / SIZE[1]], -1)
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p10le"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    frames = [read(each, str(tmp_path / "x.mp4"), [0, 1, 2]).astype(int) for each in (DecordReader, PyAVReader)]
    assert np.abs(frames[0] - frames[1]).max() <= 5
    assert np.abs(frames[1] - image).max() <= 6


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("stream.ts", {"options": B_FRAMES}),
        ("program.mpg", {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}}),
        ("b_frames.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
        ("h264.avi", {"options": B_FRAMES}),
        ("open_gop.mp4", {"options": OPEN_GOP}),
        ("windows.wmv", {"codec": "wmv2"}),
    ],
)
def test_pyav_finds_the_frames_asked_for_where_seeking_is_not_exact(tmp_path: Path, name: str, settings: dict):
    path = write(tmp_path / name, **settings)
    with av.open(path) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(expected) == NUM_FRAMES
    np.testing.assert_array_equal(read(PyAVReader, path, SOME), np.stack([expected[index] for index in SOME]))


def test_pyav_counts_only_frames_that_an_edit_list_shows(tmp_path: Path):
    whole = write(tmp_path / "x.mp4")
    shown = read(PyAVReader, whole, list(range(5, NUM_FRAMES)))
    cut = cut_start(whole, 5)
    assert video_length(cut) == NUM_FRAMES - 5
    np.testing.assert_array_equal(read(PyAVReader, cut, list(range(NUM_FRAMES - 5))), shown)


def video_length(path: str) -> int:
    reader = PyAVReader(path)
    try:
        return len(reader)
    finally:
        reader.close()


def test_pyav_decodes_from_the_nearest_keyframe(tmp_path: Path):
    reader = PyAVReader(write(tmp_path / "x.mp4", options=B_FRAMES))
    starts = []
    seek = reader._container.seek
    reader._container = SimpleNamespace(
        seek=lambda start, stream: starts.append(start) or seek(start, stream=stream),
        decode=reader._container.decode,
        close=reader._container.close,
    )
    reader.frames([38, 13, 12, 39])
    reader.close()
    assert starts == [reader._starts[12], reader._starts[36]]


def test_a_frame_that_cannot_be_decoded_is_an_error_and_not_its_neighbor(tmp_path: Path):
    path = Path(write(tmp_path / "x.mkv", codec="ffv1", pixels="bgr0"))
    reader = PyAVReader(str(path))
    reader._starts[3] += 1
    try:
        with pytest.raises(DecodeError, match="frame 3 of 40 cannot be decoded"):
            reader.frames([2, 3])
    finally:
        reader.close()


def test_a_title_that_is_not_utf_8_does_not_refuse_the_frames(tmp_path: Path):
    path = Path(write(tmp_path / "x.mp4"))
    data = path.read_bytes()
    assert b"VideoHandler" in data
    path.write_bytes(data.replace(b"VideoHandler", b"Video\xff\xe4\xf3dler"))
    assert read(PyAVReader, str(path), [0]).shape == (1, *SIZE, 3)


def test_the_choice_is_logged_once_with_the_reason(
    fresh_choice: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "decord", None)
    with caplog.at_level(logging.INFO):
        assert [video_reader_class() for _ in range(3)] == [PyAVReader] * 3
    assert len(caplog.records) == 1
    assert "videos are read with PyAV" in caplog.text and "decord does not load here" in caplog.text


def test_decord_is_used_and_logged_where_it_loads(
    fresh_choice: None, decord: ModuleType, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        assert [video_reader_class() for _ in range(3)] == [DecordReader] * 3
    assert [record.getMessage() for record in caplog.records] == [f"videos are read with decord {decord.__version__}"]


def test_a_reader_is_closed_after_its_block_and_after_an_error_in_it(
    tmp_path: Path, fresh_choice: None, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "x.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)
    closed = []
    original = PyAVReader.close
    monkeypatch.setattr(PyAVReader, "close", lambda self: closed.append(1) or original(self))
    with open_video(path) as reader:
        assert len(reader) == NUM_FRAMES
    assert closed == [1]
    with pytest.raises(DecodeError, match="of this file"), open_video(path):
        raise DecodeError("of this file")
    assert closed == [1, 1]

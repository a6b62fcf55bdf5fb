"""Tests of the video reader against decoding every frame of the file from its beginning."""

import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from transformers import Qwen3VLVideoProcessor

from qwenvl.data.media.video_reader import DecodeError, VideoReader, open_video
from qwenvl.data.media.videos import VideoInfo, load_video, sample_frame_indices, video_info
from tests.data.media.test_videos import write_uneven

RANDOM = np.random.default_rng(0)
NUM_FRAMES = 40
SIZE = (96, 160)
B_FRAMES = {"bf": "3", "g": "12"}
OPEN_GOP = {"bf": "3", "g": "12", "x264-params": "open-gop=1:keyint=12:min-keyint=12"}
OPEN_GOP_X265 = {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:log-level=none:pools=1:frame-threads=1"}
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


def read(path: str, indices: list[int]) -> np.ndarray:
    with open_video(path) as reader:
        return reader.frames(indices)


def decode_all(path: str) -> np.ndarray:
    """Return all frames, decoded one after the other: an independent reading, which does not seek."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


KINDS = {
    "closed.mp4": {},
    "b_frames.mp4": {"options": B_FRAMES},
    "b_frames.mkv": {"options": B_FRAMES},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "open_gop_x265.mp4": {"codec": "libx265", "options": OPEN_GOP_X265},
    "open_gop_x265.mkv": {"codec": "libx265", "options": OPEN_GOP_X265},
    "open_gop_x265.ts": {"codec": "libx265", "options": OPEN_GOP_X265},
    "no_keyframes.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "no_keyframes.ts": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "full_range.mp4": {"pixels": "yuvj420p"},
    "444.mp4": {"pixels": "yuv444p"},
    "ten_bits.mp4": {"pixels": "yuv420p10le"},
    "no_b_frames.avi": {"codec": "mpeg4"},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "h264.avi": {"options": B_FRAMES},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"g": "12"}},
    "flash.flv": {"options": B_FRAMES},
    "stream.ts": {"options": B_FRAMES},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "mpeg4.ts": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"bf": "2", "g": "12"}},
    "program.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}},
    "windows.wmv": {"codec": "wmv2"},
    "h264.wmv": {"options": B_FRAMES},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_are_those_asked_for(tmp_path: Path, name: str):
    path = write(tmp_path / name, **KINDS[name])
    expected = decode_all(path)
    assert len(expected) == NUM_FRAMES
    np.testing.assert_array_equal(read(path, SOME), expected[SOME])
    for index in range(0, NUM_FRAMES, 5):
        np.testing.assert_array_equal(read(path, [index]), expected[[index]])


# FFmpeg finds no rate in the short mpeg4.ts.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "mpeg4.ts"])
def test_a_video_is_sampled_as_its_header_says(tmp_path: Path, name: str):
    path = write(tmp_path / name, **KINDS[name])
    info, processor = video_info(path), Qwen3VLVideoProcessor(fps=4, min_frames=2)
    assert info == VideoInfo(NUM_FRAMES, 25.0, *SIZE)
    indices = sample_frame_indices(info, processor)
    frames, metadata = load_video(path, processor)
    assert len(indices) == 6 and metadata.frames_indices == indices
    assert torch.equal(frames, torch.from_numpy(decode_all(path)[indices]).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("name", "start"), [("x.mp4", 0), ("x.mkv", 0), ("late.mkv", 3), ("x.mov", 0)])
def test_a_video_of_variable_rate_is_sampled_as_its_header_says(tmp_path: Path, name: str, start: int):
    path = write_uneven(tmp_path / name, start)
    info, processor = video_info(path), Qwen3VLVideoProcessor(fps=1, min_frames=2, max_frames=99)
    assert info.times is not None
    indices = sample_frame_indices(info, processor)
    frames, metadata = load_video(path, processor)
    assert len(metadata.timestamps) == len(indices)
    assert torch.equal(frames, torch.from_numpy(decode_all(path)[indices]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_of_a_turned_video_are_upright(tmp_path: Path, degrees: int):
    path = write(tmp_path / "x.mp4")
    lying = read(path, SOME)
    turn(path, degrees)
    np.testing.assert_array_equal(read(path, SOME), np.rot90(lying, -degrees // 90, (1, 2)))


def test_ten_bits_become_eight(tmp_path: Path):
    height, width = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([width * 255 / SIZE[1], height * 255 / SIZE[0], 255 - width * 128 / SIZE[1]], -1)
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p10le"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert np.abs(read(str(tmp_path / "x.mp4"), [0, 1, 2]).astype(int) - image).max() <= 6


@pytest.mark.parametrize("options", [{}, B_FRAMES, OPEN_GOP], ids=["closed", "b_frames", "open_gop"])
@pytest.mark.parametrize("num_cut", [5, 15])
def test_only_frames_that_an_edit_list_shows_are_counted(tmp_path: Path, num_cut: int, options: dict):
    whole = write(tmp_path / "x.mp4", options=options)
    expected = decode_all(whole)[num_cut:]
    cut = cut_start(whole, num_cut)
    np.testing.assert_array_equal(decode_all(cut), expected)
    assert video_info(cut).total_frames == NUM_FRAMES - num_cut
    for index in range(0, NUM_FRAMES - num_cut, 5):
        np.testing.assert_array_equal(read(cut, [index]), expected[[index]])
    np.testing.assert_array_equal(read(cut, list(range(NUM_FRAMES - num_cut))), expected)


def test_decoding_starts_at_the_nearest_keyframe(tmp_path: Path):
    reader = VideoReader(write(tmp_path / "x.mp4", options=B_FRAMES))
    starts = []
    seek = reader._container.seek
    reader._container = SimpleNamespace(
        seek=lambda start, stream: starts.append(start) or seek(start, stream=stream),
        demux=reader._container.demux,
        close=reader._container.close,
    )
    reader.frames([38, 13, 12, 39])
    reader.close()
    assert starts == [reader._starts[12], reader._starts[36]]


def test_a_frame_that_cannot_be_decoded_is_an_error_and_not_its_neighbor(tmp_path: Path):
    path = Path(write(tmp_path / "x.mkv", codec="ffv1", pixels="bgr0"))
    reader = VideoReader(str(path))
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
    assert read(str(path), [0]).shape == (1, *SIZE, 3)


def test_a_reader_is_closed_after_its_block_and_after_an_error_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "x.mp4")
    closed = []
    original = VideoReader.close
    monkeypatch.setattr(VideoReader, "close", lambda self: closed.append(1) or original(self))
    with open_video(path) as reader:
        assert len(reader) == NUM_FRAMES
    assert closed == [1]
    with pytest.raises(DecodeError, match="of this file"), open_video(path):
        raise DecodeError("of this file")
    assert closed == [1, 1]

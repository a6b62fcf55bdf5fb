"""Owns the step from one video file to its sampled frames, decoded with decord."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from qwenvl.errors import UserError


class VideoError(UserError):
    """A video file that cannot be read; the message names it and says why."""


class VideoInfo(NamedTuple):
    """What sampling needs to know of a video; `height` and `width` in pixels, as shown upright."""

    total_frames: int
    fps: float
    height: int
    width: int


def video_info(path: str) -> VideoInfo:
    """Return the number of frames, frames per second and frame size; raises `VideoError`."""
    with _opened(path) as reader:
        return _info(reader)


def sample_frame_indices(info: VideoInfo, video_processor: BaseVideoProcessor) -> list[int]:
    """Return the indices of the frames that `load_video` takes: the video processor's own rule, at its `fps`."""
    return [int(index) for index in video_processor.sample_frames(_metadata(info), fps=video_processor.fps)]


def load_video(path: str, video_processor: BaseVideoProcessor) -> tuple[torch.Tensor, VideoMetadata]:
    """Return the sampled frames, uint8 (T, 3, H, W), and the metadata that the processor makes its timestamps from.

    The processor must be told that the frames are sampled already (`do_sample_frames=False`). Raises `VideoError`.
    """
    with _opened(path) as reader:
        info = _info(reader)
        metadata = _metadata(info)
        metadata.frames_indices = sample_frame_indices(info, video_processor)
        frames = reader.get_batch(metadata.frames_indices).asnumpy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), metadata


def _metadata(info: VideoInfo) -> VideoMetadata:
    return VideoMetadata(
        total_num_frames=info.total_frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        duration=info.total_frames / info.fps,
        video_backend="decord",
    )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a decord reader for the time of one call, and name the file in what goes wrong.

    A reader is never kept: one from before a DataLoader forks its workers hangs in them. One thread each, because the
    workers share the cores.
    """
    decord = _decord(path)
    if not os.path.isfile(path):
        raise VideoError(f"{path}: no such video file; correct the path")
    try:
        yield decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (RuntimeError, decord.DECORDError) as error:
        # decord puts a time and a place in its own source before each sentence, and a stack below.
        sentence = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error).strip().partition("\n")[0])
        raise VideoError(f"{path}: cannot decode the video ({sentence}); replace or re-encode the file") from error


def _decord(path: str) -> ModuleType:
    try:
        import decord
    # OSError: the package is there, but a library that it links to is not.
    except (ImportError, OSError) as error:
        raise UserError(
            f"{path}: reading videos needs decord, which does not load here ({error}); pip install decord, build it "
            "from source where there is no wheel, or leave the video records out"
        ) from None
    return decord


def _info(reader: Any) -> VideoInfo:
    total_frames, fps = len(reader), float(reader.get_avg_fps())
    if total_frames < 2:
        raise RuntimeError(f"{total_frames} frame(s), expected at least 2: give a single frame as an image")
    if not math.isfinite(fps) or fps <= 0:
        raise RuntimeError(f"{fps} frames per second")
    height, width, channels = reader[0].shape
    # Where rows are padded by as much as they are wide, decord takes that for a fourth channel and cannot copy them.
    if channels != 3:
        raise RuntimeError(f"decord cannot read frames of {width} x {height} pixels: make them 128 wide or more")
    return VideoInfo(total_frames, fps, height, width)

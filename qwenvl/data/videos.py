"""Owns the step from one video file to its sampled frames, decoded with decord."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.video_utils import VideoMetadata

from qwenvl.errors import UserError

if TYPE_CHECKING:
    from decord import VideoReader
    from transformers import BaseVideoProcessor


class VideoError(UserError):
    """A video file that cannot be read; the message names it and says why."""


class VideoInfo(NamedTuple):
    """What sampling needs to know of a video; `height` and `width` in pixels."""

    total_frames: int
    fps: float
    height: int
    width: int


def video_info(path: str) -> VideoInfo:
    """Return number and size of frames and frames per second; raises `VideoError`."""
    with _opened(path) as reader:
        return _info(reader)


def sample_frame_indices(info: VideoInfo, video_processor: "BaseVideoProcessor") -> list[int]:
    """Return the indices of the frames that `load_video` takes, by the video processor's own rule and settings."""
    return [int(index) for index in video_processor.sample_frames(_metadata(info), fps=video_processor.fps)]


def load_video(path: str, video_processor: "BaseVideoProcessor") -> tuple[torch.Tensor, VideoMetadata]:
    """Return the sampled frames, uint8 (T, 3, H, W), and the metadata that the processor makes its timestamps from.

    Raises `VideoError` for a file that is missing, broken or too short.
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
def _opened(path: str) -> Iterator["VideoReader"]:
    """Open a video for the time of one call.

    A reader is never kept: one that was made before a DataLoader forks its workers hangs in them, and one thread per
    reader is what leaves the cores to the workers.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UserError(
            f"{path}: reading videos needs decord, which does not load here ({error}); install decord (on a platform "
            "without a wheel, build it from source), or train without video"
        ) from None
    try:
        yield decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (RuntimeError, OSError, decord.DECORDError) as error:
        raise VideoError(f"{path}: cannot decode the video ({_first_line(error)}); replace the file") from error


def _info(reader: Any) -> VideoInfo:
    fps = float(reader.get_avg_fps())
    if len(reader) == 0 or not math.isfinite(fps) or fps <= 0:
        raise RuntimeError(f"{len(reader)} frames at {fps} frames per second")
    height, width, _ = reader[0].shape
    return VideoInfo(len(reader), fps, height, width)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

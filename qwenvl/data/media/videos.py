"""Sample the frames of one video file, with the times at which they are shown."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from qwenvl.data.media.files import file_flaw
from qwenvl.data.media.images import MAX_IMAGE_PIXELS
from qwenvl.data.media.video_reader import DecodeError, VideoReader, open_video
from qwenvl.errors import UserError

# How far a frame may be from its time at a constant rate; the model is given times in tenths of a second.
_MAX_JITTER_SECONDS = 0.01


class VideoError(UserError):
    """A video file that cannot be read; the message names it and says why."""


class VideoInfo(NamedTuple):
    """The properties of a video that sampling depends on.

    `height` and `width` in pixels, as shown upright. `fps` is the average rate. `times` are those of all frames in
    seconds from the first, or None where the rate is constant.
    """

    total_frames: int
    fps: float
    height: int
    width: int
    times: tuple[float, ...] | None = None


def video_info(path: str) -> VideoInfo:
    """Return the number of frames, frames per second and frame size; raises `VideoError`."""
    with _opened(path) as reader:
        return _info(reader)


def sample_frame_indices(info: VideoInfo, video_processor: BaseVideoProcessor) -> list[int]:
    """Return the indices of the frames that `load_video` takes: the video processor's own rule, at its `fps`."""
    return [int(index) for index in video_processor.sample_frames(_metadata(info), fps=video_processor.fps)]


def load_video(path: str, video_processor: BaseVideoProcessor) -> tuple[torch.Tensor, VideoMetadata]:
    """Return the sampled frames, uint8 (T, 3, H, W), and the metadata that the processor makes its timestamps from.

    The processor must get `do_sample_frames=False`, because the frames are sampled already. Raises `VideoError`.
    """
    with _opened(path) as reader:
        info = _info(reader)
        indices = sample_frame_indices(info, video_processor)
        frames = reader.frames(indices)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), frames_metadata(info, indices)


def frames_metadata(info: VideoInfo, indices: Sequence[int]) -> VideoMetadata:
    """Return the metadata of sampled frames, from which the processor writes each frame's time into the prompt.

    The processor divides `frames_indices` by `fps`. At a variable rate `frames_indices` are therefore not the numbers
    of the frames but their times multiplied by the average rate, so that the prompt has the true times.
    """
    metadata = _metadata(info)
    times = info.times
    metadata.frames_indices = list(indices) if times is None else [times[index] * info.fps for index in indices]
    return metadata


def _metadata(info: VideoInfo) -> VideoMetadata:
    return VideoMetadata(
        total_num_frames=info.total_frames,
        fps=info.fps,
        width=info.width,
        height=info.height,
        duration=info.total_frames / info.fps,
    )


@contextmanager
def _opened(path: str) -> Iterator[VideoReader]:
    """Open a video file for one `with` block, and name it in what goes wrong."""
    flaw = file_flaw(path, "video file")
    if flaw is not None:
        raise VideoError(flaw, path=path)
    try:
        with open_video(path) as reader:
            yield reader
    except DecodeError as error:
        raise VideoError(f"cannot decode the video ({error}); replace or re-encode the file", path=path) from error


def _info(reader: VideoReader) -> VideoInfo:
    total_frames, fps = len(reader), reader.average_rate()
    if total_frames < 2:
        raise DecodeError(f"{total_frames} frame(s), expected at least 2: give a single frame as an image")
    if not math.isfinite(fps) or fps <= 0:
        raise DecodeError(f"{fps} frames per second")
    height, width = reader.frame_size()
    if height * width > MAX_IMAGE_PIXELS:
        raise DecodeError(f"frames of {width} x {height} pixels are more than the limit of {MAX_IMAGE_PIXELS}")
    fps, times = _rate_and_times(reader.frame_times(), reader.last_duration(), fps)
    return VideoInfo(total_frames, fps, height, width, times)


def _rate_and_times(starts: np.ndarray, last_duration: float, fps: float) -> tuple[float, tuple[float, ...] | None]:
    """Return the average rate and, where it is not constant, the time of each frame in seconds from the first.

    `starts` (frames,) are the times in the file, `fps` is the rate that it declares.
    """
    total_frames = len(starts)
    # Some containers store no times, only the rate.
    if total_frames < 2 or not (np.diff(starts) > 0).all():
        return fps, None
    if np.abs(starts - np.arange(total_frames) / fps).max() <= _MAX_JITTER_SECONDS:
        return fps, None
    # The declared rate may have nothing to do with the frames.
    duration = starts[-1] + (last_duration or starts[-1] / (total_frames - 1))
    return total_frames / float(duration), tuple(starts.round(3).tolist())

"""Read one video file as its sampled frames and the times at which they are shown, with decord."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from qwenvl.data.media.files import file_flaw
from qwenvl.data.media.images import MAX_IMAGE_PIXELS
from qwenvl.errors import UserError

# How far from the place of a constant rate a frame may be shown: times are told to the model in tenths of a second.
_STEADY_SECONDS = 0.01


class VideoError(UserError):
    """A video file that cannot be read; the message names it and says why."""


class VideoInfo(NamedTuple):
    """What sampling needs to know of a video.

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

    The processor must be told that the frames are sampled already (`do_sample_frames=False`). Raises `VideoError`.
    """
    with _opened(path) as reader:
        info = _info(reader)
        indices = sample_frame_indices(info, video_processor)
        frames = reader.get_batch(indices).asnumpy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), frames_metadata(info, indices)


def frames_metadata(info: VideoInfo, indices: Sequence[int]) -> VideoMetadata:
    """Return the metadata of sampled frames, from which the processor tells each frame's time.

    The processor divides `frames_indices` by `fps`. At a variable rate they are therefore not the frames' numbers but
    where, at the average rate, a frame of that time would lie: times told are the ones at which frames are shown.
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
        video_backend="decord",
    )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a decord reader for the time of one call, and name the file in what goes wrong.

    A reader is never kept: one from before a DataLoader forks its workers hangs in them. One thread each, because the
    workers share the cores.
    """
    decord = _decord(path)
    flaw = file_flaw(path, "video file")
    if flaw is not None:
        raise VideoError(flaw, path=path)
    try:
        yield decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (RuntimeError, decord.DECORDError) as error:
        # decord puts a time and a place in its own source before each sentence, and a stack below.
        sentence = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error).strip().partition("\n")[0])
        raise VideoError(f"cannot decode the video ({sentence}); replace or re-encode the file", path=path) from error


def _decord(path: str) -> ModuleType:
    try:
        import decord
    # OSError: the package is there, but a library that it links to is not.
    except (ImportError, OSError) as error:
        raise UserError(
            f"reading videos needs decord, which does not load here ({error}); pip install decord, build it "
            "from source where there is no wheel, or leave the video records out",
            path=path,
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
    if height * width > MAX_IMAGE_PIXELS:
        raise RuntimeError(f"frames of {width} x {height} pixels are more than the limit of {MAX_IMAGE_PIXELS}")
    fps, times = _rate_and_times(reader, total_frames, fps)
    return VideoInfo(total_frames, fps, height, width, times)


def _rate_and_times(reader: Any, total_frames: int, fps: float) -> tuple[float, tuple[float, ...] | None]:
    """Return the average rate and, where it is not constant, the time of each frame in seconds from the first."""
    shown = np.asarray(reader.get_frame_timestamp(list(range(total_frames))), dtype=np.float64)
    starts, end = shown[:, 0] - shown[0, 0], shown[-1, 1] - shown[0, 0]
    # Some containers tell no times, and then there is nothing but their rate.
    if not (np.diff(starts) > 0).all():
        return fps, None
    if np.abs(starts - np.arange(total_frames) / fps).max() <= _STEADY_SECONDS:
        return fps, None
    # What a container calls its rate may have nothing to do with its frames; some do not tell when the last one ends.
    duration = end if end > starts[-1] else starts[-1] * total_frames / (total_frames - 1)
    return total_frames / float(duration), tuple(starts.round(3).tolist())

"""Decode video files with decord, or with PyAV on platforms where decord does not load.

decord has had no release since 2021 and no wheels for arm64 (https://github.com/dmlc/decord/issues/297).

Both readers return equal frames, times and rates, so that what is sampled of a video does not depend on the platform.
The exceptions:

- Frames of more than 8 bits a channel differ by a few levels, because decord's wheel holds an FFmpeg of 2018.
- decord returns a neighbor of the frame asked for after a seek in videos with open groups of pictures, in WMV, and in
  MPEG transport streams with B-frames (https://github.com/dmlc/decord/issues/54); it repeats the last frame for those
  that an edit list cuts off. PyAV returns the frames asked for.
- Some videos can only be read with PyAV, such as AV1 and frames of 48 x 64 pixels.

Shapes: T frames of H x W pixels.
"""

import logging
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby, islice
from threading import Lock
from typing import NamedTuple

import av
import numpy as np

logger = logging.getLogger(__name__)

_CHOICE_LOCK = Lock()


class DecodeError(Exception):
    """A video that cannot be decoded; the message is the reason without the path."""


class VideoReader(ABC):
    """The frames of one open video file, upright and in the order in which they are shown."""

    @classmethod
    @abstractmethod
    def library_errors(cls) -> tuple[type[BaseException], ...]:
        """Return the exceptions by which the library reports a file that it cannot decode."""

    @classmethod
    def describe(cls, error: BaseException) -> str:
        """Return the reason in one of the library's errors as one line."""
        return " ".join(str(error).split()) or type(error).__name__

    @abstractmethod
    def __init__(self, path: str) -> None:
        """Open a file; raises one of `library_errors` or `DecodeError`, as all methods do."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of frames."""

    @abstractmethod
    def average_rate(self) -> float:
        """Return the frames per second that the file declares; not finite where it declares none."""

    @abstractmethod
    def frame_size(self) -> tuple[int, int]:
        """Return (H, W) in pixels."""

    @abstractmethod
    def frame_times(self) -> np.ndarray:
        """Return when each frame starts and ends to be shown, float32 (frames, 2) in seconds."""

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames by their numbers, uint8 (T, H, W, 3) in RGB."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release the file."""


class DecordReader(VideoReader):
    """Read with decord, on one thread because data workers share the cores."""

    @classmethod
    def library_errors(cls) -> tuple[type[BaseException], ...]:
        """Return decord's own exception and those that it raises for a file without frames."""
        import decord

        return (RuntimeError, AssertionError, decord.DECORDError)

    @classmethod
    def describe(cls, error: BaseException) -> str:
        """Return the first sentence without the time and source line before it, and the stack below."""
        return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error).strip().partition("\n")[0])

    def __init__(self, path: str) -> None:
        import decord

        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)

    def __len__(self) -> int:
        return len(self._reader)

    def average_rate(self) -> float:
        """Return the frames per second that the file declares."""
        return float(self._reader.get_avg_fps())

    def frame_size(self) -> tuple[int, int]:
        """Return (H, W) in pixels; raises `DecodeError` for sizes that decord cannot copy."""
        height, width, channels = self._reader[0].shape
        # decord takes the number of channels from the length of a padded row, and cannot copy what is not 3. Can go
        # with decord, or when it is fixed: https://github.com/dmlc/decord/issues/336.
        if channels != 3:
            raise DecodeError(f"decord cannot read frames of {width} x {height} pixels: make them 128 wide or more")
        return height, width

    def frame_times(self) -> np.ndarray:
        """Return start and end of each frame, float32 (frames, 2) in seconds."""
        return self._reader.get_frame_timestamp(list(range(len(self))))

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames by their numbers, uint8 (T, H, W, 3) in RGB."""
        return self._reader.get_batch(list(indices)).asnumpy()


class _PacketTimes(NamedTuple):
    """The times of one frame's packet, in the stream's ticks."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool


class PyAVReader(VideoReader):
    """Read with PyAV, on one thread, frames numbered and timed as decord does."""

    @classmethod
    def library_errors(cls) -> tuple[type[BaseException], ...]:
        """Return FFmpeg's errors, and PyAV's own."""
        return (av.FFmpegError, RuntimeError)

    @classmethod
    def describe(cls, error: BaseException) -> str:
        """Return the reason without FFmpeg's number and the path."""
        reason = error.strerror if isinstance(error, av.FFmpegError) else None
        return reason or super().describe(error)

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()
        try:
            self._index_packets()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open the file at its beginning; not every format can seek there."""
        # A broken title is no reason to refuse the frames.
        self._container = av.open(self._path, metadata_errors="replace")
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self.close()
            raise DecodeError("no video stream that FFmpeg can decode")
        self._stream.codec_context.thread_count = 1

    def _index_packets(self) -> None:
        """Collect the times of all frames, in the stream's ticks, and which of them can be decoded alone."""
        # Only the numbers are kept, because a packet holds its part of the file in memory. FFmpeg decodes discarded
        # packets, which an edit list cuts off, but shows none of their frames.
        packets = [
            _PacketTimes(each.pts, each.dts, each.duration or 0, each.is_keyframe)
            for each in self._container.demux(self._stream)
            if each.size and not each.is_discard
        ]
        if not packets:
            raise DecodeError("the video stream holds no frames")
        self._num_frames = len(packets)
        self._tick, self._start = float(self._stream.time_base or 0), self._stream.start_time or 0
        # AVI stores no times; what FFmpeg reports instead are those of decoding.
        if self._container.format.name == "avi" or any(each.pts is None for each in packets):
            packets = []
        packets.sort(key=lambda each: each.pts)
        length = self._frame_length(packets)
        self._starts = [each.pts for each in packets]
        self._ends = [each.pts + (each.duration if length is None else length) for each in packets]
        self._keys = [each.pts for each in packets if each.is_keyframe]
        self._has_unique_times = len(set(self._starts)) == self._num_frames

    def _frame_length(self, packets: list[_PacketTimes]) -> int | None:
        """Return the ticks that each frame of an MP4 file with B-frames lasts, None for other files.

        The durations of such packets are those between decoding times. decord's FFmpeg derives one from the base rate
        instead, and sampling takes the end of the last frame from it. FFmpeg's estimate of the base rate may differ, so
        at a variable rate the average can be off by the length of one frame.
        """
        rate, tick = self._stream.base_rate, self._stream.time_base
        is_reordered = "mp4" in self._container.format.name and any(each.pts != each.dts for each in packets)
        return int(1 / (rate * tick)) if is_reordered and rate and tick else None

    def __len__(self) -> int:
        return self._num_frames

    def average_rate(self) -> float:
        """Return the frames per second that the file declares; NaN where it declares none."""
        rate = self._stream.average_rate
        return float("nan") if rate is None else float(rate)

    def frame_size(self) -> tuple[int, int]:
        """Return (H, W) in pixels of the first frame."""
        return self.frames([0]).shape[1:3]

    def frame_times(self) -> np.ndarray:
        """Return start and end of each frame, float32 (frames, 2) in seconds; zeros where the file stores none."""
        if not self._starts:
            return np.zeros((len(self), 2), np.float32)
        # Rounded as decord does, because the number of sampled frames may depend on the last digit. Can go with decord:
        # https://github.com/dmlc/decord/blob/v0.6.0/src/video/video_reader.cc#L492
        ticks = np.array([self._starts, self._ends]).T.astype(np.float32) - np.float32(self._start)
        return (ticks.astype(np.float64) * self._tick).astype(np.float32)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames by their numbers, uint8 (T, H, W, 3) in RGB; raises `DecodeError` for one that is missing."""
        wanted = sorted(set(indices))
        found = self._seek_frames(wanted) if self._has_unique_times else self._count_frames(wanted)
        missing = [index for index in wanted if index not in found]
        if missing:
            raise DecodeError(f"frame {missing[0]} of {len(self)} cannot be decoded")
        if len({frame.shape for frame in found.values()}) > 1:
            raise DecodeError("its frames differ in size")
        return np.stack([found[index] for index in indices])

    def _seek_frames(self, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Return frames by their times, decoded from the keyframe before each or, where that fails, from the start."""
        found: dict[int, np.ndarray] = {}
        for key, group in groupby(wanted, lambda index: bisect_right(self._keys, self._starts[index])):
            self._container.seek(self._keys[key - 1] if key else self._starts[0], stream=self._stream)
            found |= self._take_frames(list(group))
        missing = [index for index in wanted if index not in found]
        if missing:
            self.close()
            self._open()
            found |= self._take_frames(missing)
        return found

    def _take_frames(self, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Decode from the current position to the last of `wanted`, or beyond its time."""
        numbers = {self._starts[index]: index for index in wanted}
        found: dict[int, np.ndarray] = {}
        for frame in self._container.decode(self._stream):
            if frame.pts in numbers:
                found[numbers[frame.pts]] = _to_rgb(frame)
            if len(found) == len(numbers) or (frame.pts is not None and frame.pts > self._starts[wanted[-1]]):
                break
        return found

    def _count_frames(self, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Return frames by counting all from the beginning, for files in which a frame has no time of its own."""
        self.close()
        self._open()
        numbers = set(wanted)
        decoded = enumerate(islice(self._container.decode(self._stream), wanted[-1] + 1))
        return {index: _to_rgb(frame) for index, frame in decoded if index in numbers}

    def close(self) -> None:
        """Release the file."""
        self._container.close()


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Return a decoded frame upright, uint8 (H, W, 3)."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    quarters, rest = divmod(frame.rotation, 90)
    return pixels if rest else np.rot90(pixels, quarters)


@contextmanager
def open_video(path: str) -> Iterator[VideoReader]:
    """Open a video file for one `with` block; raises `DecodeError` for what goes wrong in it.

    A decord reader must not be kept, because it waits forever in a DataLoader worker that was forked after it was
    opened (https://github.com/dmlc/decord/issues/294).
    """
    reader_class = video_reader_class()
    try:
        reader = reader_class(path)
        try:
            yield reader
        finally:
            reader.close()
    except reader_class.library_errors() as error:
        raise DecodeError(reader_class.describe(error)) from error


def video_reader_class() -> type[VideoReader]:
    """Return the reader of this platform, and log the choice the first time."""
    with _CHOICE_LOCK:
        return _choose_reader()


@cache
def _choose_reader() -> type[VideoReader]:
    try:
        import decord
    # OSError: the package is there, but a library that it links to is not, or is of another platform.
    except (ImportError, OSError) as error:
        logger.info("videos are read with PyAV %s, because decord does not load here (%s)", av.__version__, error)
        return PyAVReader
    logger.info("videos are read with decord %s", decord.__version__)
    return DecordReader

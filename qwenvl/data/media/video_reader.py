"""Decode the frames of video files with PyAV.

Shapes: T frames of H x W pixels.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, dropwhile, groupby, islice
from typing import NamedTuple

import av
import numpy as np

# Formats of which FFmpeg guesses packet times, differently after a seek; their frames are counted from the start.
# AVI stores no times at all, and program streams and ASF none for some of the frames.
_GUESSED_TIMES = frozenset(("avi", "mpeg", "asf"))


class DecodeError(Exception):
    """A video that cannot be decoded; the message is the reason without the path."""


class _PacketTimes(NamedTuple):
    """The times of one frame's packet, in the stream's ticks."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool


class VideoReader:
    """The frames of one open video file, upright and numbered in the order in which they are shown.

    They are decoded on one thread, because data workers share the cores. Every method raises `DecodeError` or one of
    PyAV's errors, which `open_video` turns into it.
    """

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
        container_format = self._container.format.name
        if container_format == "avi" or any(each.pts is None for each in packets):
            packets = []
        packets.sort(key=lambda each: each.pts)
        self._starts = [each.pts for each in packets]
        self._keyframes = [each for each in packets if each.is_keyframe]
        self._can_seek = container_format not in _GUESSED_TIMES and len(set(self._starts)) == self._num_frames
        # Where frames are not decoded in the order in which they are shown, durations are those between decoding times.
        is_in_order = all(each.pts == each.dts for each in packets)
        self._last_duration = packets[-1].duration if packets and is_in_order else 0

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
        """Return when each frame is shown, float64 (frames,) in seconds from the first; empty where none are stored."""
        tick = float(self._stream.time_base or 0)
        return np.array([(start - self._starts[0]) * tick for start in self._starts])

    def last_duration(self) -> float:
        """Return the seconds for which the last frame is shown; 0 where that is unknown."""
        return self._last_duration * float(self._stream.time_base or 0)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames by their numbers, uint8 (T, H, W, 3) in RGB; raises `DecodeError` for one that is missing."""
        wanted = sorted(set(indices))
        found = self._seek_frames(wanted) if self._can_seek else self._count_frames(wanted)
        missing = [index for index in wanted if index not in found]
        if missing:
            raise DecodeError(f"frame {missing[0]} of {len(self)} cannot be decoded")
        if len({frame.shape for frame in found.values()}) > 1:
            raise DecodeError("its frames differ in size")
        return np.stack([found[index] for index in indices])

    def _seek_frames(self, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Return frames by their times, decoded from the keyframe before each or, where that fails, from the start."""
        found: dict[int, np.ndarray] = {}
        for number, group in groupby(wanted, self._count_keyframes):
            if number:
                found |= self._take_frames(self._packets_from(self._keyframes[number - 1]), list(group))
        missing = [index for index in wanted if index not in found]
        if missing:
            self.close()
            self._open()
            found |= self._take_frames(self._container.demux(self._stream), missing)
        return found

    def _count_keyframes(self, index: int) -> int:
        """Return the number of keyframes up to a frame."""
        return bisect_right(self._keyframes, self._starts[index], key=lambda each: each.pts)

    def _packets_from(self, keyframe: _PacketTimes) -> Iterator[av.Packet]:
        """Return the packets from a keyframe, or an earlier one; none where seeking does not lead there."""
        # MPEG-TS is searched for the time of decoding, Matroska for that of showing.
        for time in (keyframe.pts, keyframe.dts):
            if time is None:
                continue
            self._container.seek(time, stream=self._stream)
            # Between keyframes some decoders make up the references that are missing.
            packets = dropwhile(lambda packet: not packet.is_keyframe, self._container.demux(self._stream))
            first = next(packets, None)
            if first is not None and first.pts is not None and first.pts <= keyframe.pts:
                return chain([first], packets)
        return iter(())

    def _take_frames(self, packets: Iterable[av.Packet], wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Decode packets up to the last frame of `wanted`, or one that is shown later."""
        numbers = {self._starts[index]: index for index in wanted}
        found: dict[int, np.ndarray] = {}
        for frame in chain.from_iterable(packet.decode() for packet in packets):
            if frame.pts in numbers:
                found[numbers[frame.pts]] = _to_rgb(frame)
            if len(found) == len(numbers) or (frame.pts is not None and frame.pts > self._starts[wanted[-1]]):
                break
        return found

    def _count_frames(self, wanted: Sequence[int]) -> dict[int, np.ndarray]:
        """Return frames by counting all from the beginning, for files in which times do not identify frames."""
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
    """Open a video file for one `with` block; raises `DecodeError` for what goes wrong in it."""
    try:
        reader = VideoReader(path)
        try:
            yield reader
        finally:
            reader.close()
    except (av.FFmpegError, RuntimeError) as error:
        raise DecodeError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the reason in an error as one line, without FFmpeg's number and the path."""
    reason = error.strerror if isinstance(error, av.FFmpegError) else None
    return reason or " ".join(str(error).split()) or type(error).__name__

"""Read videos that are given as images, one a frame: their size, and the sampled frames."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from qwenvl.data.media.images import image_size, load_image
from qwenvl.data.media.store import FRAME_LIST_SUFFIX
from qwenvl.data.media.videos import VideoError, VideoInfo, frames_metadata, load_video, sample_frame_indices
from qwenvl.errors import UserError


def is_frame_list(path: str) -> bool:
    """Return whether a video's path is that of a list of frames, as `MediaStore.keep_frames` writes it."""
    return path.endswith(FRAME_LIST_SUFFIX)


def frames_info(path: str) -> VideoInfo:
    """Return the number, rate and size of the frames in a list; raises `UserError`."""
    frames, fps = _read(path)
    size = image_size(frames[0])
    for frame in frames[1:]:
        _check_size(frame, image_size(frame), size)
    return VideoInfo(total_frames=len(frames), fps=fps, height=size[0], width=size[1])


def load_clip(path: str, video_processor: BaseVideoProcessor) -> tuple[torch.Tensor, VideoMetadata]:
    """Return the sampled frames, uint8 (T, 3, H, W), and their metadata, of a video file or of a list of frames.

    Both are sampled by the same rule. Raises `UserError`.
    """
    if not is_frame_list(path):
        return load_video(path, video_processor)
    frames, fps = _read(path)
    # Only the sampled frames are decoded and compared with the first in size.
    height, width = image_size(frames[0])
    info = VideoInfo(total_frames=len(frames), fps=fps, height=height, width=width)
    indices = sample_frame_indices(info, video_processor)
    images = [np.asarray(load_image(frames[index])) for index in indices]
    for index, image in zip(indices, images, strict=True):
        _check_size(frames[index], image.shape[:2], (height, width))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), frames_metadata(info, indices)


def frame_paths(path: str) -> list[str]:
    """Return the paths of the images in a list of frames; no paths for a list that cannot be read."""
    try:
        return _read(path)[0]
    except UserError:
        return []


def frames_stamp(path: str) -> tuple[int, int]:
    """Return the newest time and the total bytes of the frames, which change when one does; raises `OSError`."""
    try:
        frames, _ = _read(path)
    except UserError as error:
        raise OSError(str(error)) from None
    stats = [os.stat(frame) for frame in frames]
    return max(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats)


def _read(path: str) -> tuple[list[str], float]:
    try:
        listed = json.loads(Path(path).read_bytes())
        return listed["frames"], float(listed["fps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VideoError(f"cannot read the list of frames ({error}); run again to rewrite it", path=path) from None


def _check_size(frame: str, size: tuple[int, int], first: tuple[int, int]) -> None:
    if tuple(size) != tuple(first):
        raise VideoError(
            f"a frame of {size[1]} x {size[0]} pixels in a video that begins with {first[1]} x {first[0]}: "
            "give all frames of a video the same size",
            path=frame,
        )

"""Owns the drawing of the small pictures and videos that the demos and the tests use."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]


def draw_shapes(
    size: tuple[int, int], shapes: Sequence[tuple[str, str, Box]], background: str = "white"
) -> Image.Image:
    """Return an RGB picture of `size` (width, height) with shapes of (kind, colour, (x1, y1, x2, y2)) in pixels."""
    picture = Image.new("RGB", size, background)
    pen = ImageDraw.Draw(picture)
    draw = {
        "circle": pen.ellipse,
        "square": pen.rectangle,
        "triangle": lambda box, fill: pen.polygon(
            [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill
        ),
    }
    for kind, colour, box in shapes:
        draw[kind](box, fill=colour)
    return picture


def write_video(path: str | Path, frames: Sequence[Image.Image], fps: int) -> Path:
    """Write RGB pictures of one even size as an H.264 MP4 at `fps` frames per second."""
    width, height = frames[0].size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


def moving_ball(size: tuple[int, int], num_frames: int, colour: str = "red") -> list[Image.Image]:
    """Return frames of `size` (width, height) in which a ball goes from the left edge to the right."""
    width, height = size
    diameter = height // 3
    frames = []
    for index in range(num_frames):
        left = round(index * (width - diameter) / max(num_frames - 1, 1))
        box = (left, diameter, left + diameter, 2 * diameter)
        frames.append(draw_shapes(size, [("circle", colour, box)]))
    return frames

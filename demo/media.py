"""Draw the small images and videos of the demos and the tests. Run as a program, draw those of the demos."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]

SHAPES = (
    ("circle", "red", (40, 60, 140, 160)),
    ("square", "green", (200, 30, 280, 110)),
    ("triangle", "blue", (240, 150, 380, 270)),
)
SCENE = (
    ("circle", "gold", (300, 20, 350, 70)),
    ("square", "forestgreen", (0, 200, 400, 300)),
    ("square", "sienna", (80, 120, 200, 220)),
    ("triangle", "firebrick", (60, 60, 220, 120)),
    ("square", "saddlebrown", (125, 165, 155, 220)),
)


def draw_shapes(
    size: tuple[int, int], shapes: Sequence[tuple[str, str, Box]], background: str = "white"
) -> Image.Image:
    """Return an RGB image of `size` (width, height) with shapes of (kind, color, (x1, y1, x2, y2)) in pixels."""
    image = Image.new("RGB", size, background)
    pen = ImageDraw.Draw(image)
    draw = {
        "circle": pen.ellipse,
        "square": pen.rectangle,
        "triangle": lambda box, fill: pen.polygon(
            [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill
        ),
    }
    for kind, color, box in shapes:
        draw[kind](box, fill=color)
    return image


def write_video(path: str | Path, frames: Sequence[Image.Image], fps: int) -> Path:
    """Write RGB images of one even size as an H.264 MP4 at `fps` frames per second."""
    width, height = frames[0].size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return Path(path)


def moving_ball(size: tuple[int, int], num_frames: int, color: str = "red") -> list[Image.Image]:
    """Return frames of `size` (width, height) in which a ball moves from the left edge to the right."""
    width, height = size
    diameter = height // 3
    frames = []
    for index in range(num_frames):
        left = round(index * (width - diameter) / max(num_frames - 1, 1))
        box = (left, diameter, left + diameter, 2 * diameter)
        frames.append(draw_shapes(size, [("circle", color, box)]))
    return frames


def growing_square(size: tuple[int, int], num_frames: int) -> list[Image.Image]:
    """Return frames of `size` (width, height) in which a blue square grows from the middle."""
    width, height = size
    frames = []
    for index in range(num_frames):
        half = 4 + round(index * (height / 2 - 8) / max(num_frames - 1, 1))
        box = (width // 2 - half, height // 2 - half, width // 2 + half, height // 2 + half)
        frames.append(draw_shapes(size, [("square", "blue", box)]))
    return frames


def digit_rows(rows: int, columns: int) -> Image.Image:
    """Return the first rows * columns scanned digits of scikit-learn, 32 pixels each, dark on a light background."""
    from sklearn.datasets import load_digits

    scans = load_digits().images[: rows * columns].reshape(rows, columns, 8, 8)
    sheet = scans.transpose(0, 2, 1, 3).reshape(rows * 8, columns * 8)
    image = Image.fromarray((255 - sheet * 255 / 16).astype(np.uint8))
    return image.resize((columns * 32, rows * 32), Image.Resampling.BICUBIC)


def main() -> None:
    """Draw the media of single_images.json and video.json."""
    folder = Path(__file__).parent
    images, videos = folder / "images", folder / "videos"
    images.mkdir(exist_ok=True)
    videos.mkdir(exist_ok=True)
    draw_shapes((400, 300), SHAPES).save(images / "shapes.png")
    draw_shapes((400, 300), SCENE, background="skyblue").save(images / "house.jpg", quality=90)
    digit_rows(2, 5).save(images / "digits.png")
    write_video(videos / "ball.mp4", moving_ball((128, 96), 32), fps=8)
    write_video(videos / "square.mp4", growing_square((96, 96), 16), fps=8)


if __name__ == "__main__":
    main()

"""Convert and draw bounding boxes: the formats of annotation tools, and the coordinates that Qwen models use.

All conversions go through `Box`: edges in pixels of the original image, from 0 at its left or top edge to W or H at its
right or bottom edge. Conversions are exact unless documented otherwise, so that a round trip returns its input.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from qwenvl.errors import UserError

FORMATS = ("xyxy", "xywh", "coco", "voc", "yolo")
SPACES = ("absolute", "resized", "relative")
RELATIVE_LIMIT = 1000
_COLORS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow")
_BOX_LIST = re.compile(r"\[(?=\s*\{)")


class Box(NamedTuple):
    """A box in pixels of the original image: left and right edge, top and bottom edge; x1 < x2, y1 < y2."""

    x1: float
    y1: float
    x2: float
    y2: float


class ImageSize(NamedTuple):
    """Height and width of an image in pixels, in the order that image processors use."""

    height: int
    width: int


def from_format(values: Sequence[float], box_format: str, size: ImageSize) -> Box:
    """Read a box as an annotation tool wrote it; `size` is that of the original image.

    - `xyxy`: left, top, right, bottom edge in pixels
    - `xywh` and `coco`: left, top, width, height in pixels
    - `voc`: first and last pixel of both axes, counted from 1, both inside the box
    - `yolo`: center x, center y, width, height as fractions of the image

    Raises `UserError` for an unknown format or a number of values other than 4.
    """
    a, b, c, d = _parse_values(values)
    if box_format == "xyxy":
        return Box(a, b, c, d)
    if box_format in ("xywh", "coco"):
        return Box(a, b, a + c, b + d)
    if box_format == "voc":
        return Box(a - 1, b - 1, c, d)
    if box_format == "yolo":
        return Box(
            (a - c / 2) * size.width, (b - d / 2) * size.height, (a + c / 2) * size.width, (b + d / 2) * size.height
        )
    raise _unknown_choice("box format", box_format, FORMATS)


def to_format(box: Box, box_format: str, size: ImageSize) -> tuple[float, float, float, float]:
    """Write a box as an annotation tool reads it; the formats are those of `from_format`. Raises `UserError`."""
    x1, y1, x2, y2 = box
    if box_format == "xyxy":
        return (x1, y1, x2, y2)
    if box_format in ("xywh", "coco"):
        return (x1, y1, x2 - x1, y2 - y1)
    if box_format == "voc":
        return (x1 + 1, y1 + 1, x2, y2)
    if box_format == "yolo":
        center = ((x1 + x2) / 2 / size.width, (y1 + y2) / 2 / size.height)
        return (*center, (x2 - x1) / size.width, (y2 - y1) / size.height)
    raise _unknown_choice("box format", box_format, FORMATS)


def to_space(box: Box, space: str, size: ImageSize, resized: ImageSize | None = None) -> tuple[int, int, int, int]:
    """Return the whole numbers that a model reads and writes for a box.

    - `absolute`: pixels of the original image
    - `resized`: pixels of the image after the model's resize (Qwen2.5-VL), whose size is `resized`
    - `relative`: 0 to 1000 across the image (Qwen3-VL and Qwen2-VL)

    Rounds to the nearest; a box narrower than one unit keeps one unit of width. Raises `UserError`.
    """
    limit = _limit_of_space(space, size, resized)
    x1, x2 = _round_edges(box.x1, box.x2, size.width, limit.width)
    y1, y2 = _round_edges(box.y1, box.y2, size.height, limit.height)
    return x1, y1, x2, y2


def from_space(values: Sequence[float], space: str, size: ImageSize, resized: ImageSize | None = None) -> Box:
    """Return the box in the original image that a model means by four numbers; the inverse of `to_space`."""
    x1, y1, x2, y2 = _parse_values(values)
    limit = _limit_of_space(space, size, resized)
    x_scale, y_scale = Fraction(size.width, limit.width), Fraction(size.height, limit.height)
    scaled = (_scale_exactly(x1, x_scale), _scale_exactly(y1, y_scale))
    return Box(*scaled, _scale_exactly(x2, x_scale), _scale_exactly(y2, y_scale))


def resized_size(size: ImageSize, factor: int, min_pixels: int, max_pixels: int) -> ImageSize:
    """Return the size that Qwen's image processor resizes an image to: multiples of `factor` within the limits.

    `factor` is patch size x merge size: 28 for Qwen2.5-VL, 32 for Qwen3-VL. Raises `UserError` for an image more than
    200 times longer than wide.
    """
    # Imported here because it imports torch, which only this function needs.
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        return ImageSize(*smart_resize(size.height, size.width, factor, min_pixels, max_pixels))
    except ValueError as error:
        raise UserError(f"an image of {size.width} x {size.height} pixels: {error}") from None


def check_box(box: Box, size: ImageSize) -> None:
    """Raise `UserError` for an empty or inverted box, and for a box that exceeds the image."""
    if not all(math.isfinite(value) for value in box) or not (box.x1 < box.x2 and box.y1 < box.y2):
        raise UserError(
            f"{_format_box(box)} is not a box: expected left < right and top < bottom; check the box format"
        )
    if box.x1 < 0 or box.y1 < 0 or box.x2 > size.width or box.y2 > size.height:
        raise UserError(
            f"box {_format_box(box)} exceeds the image of {size.width} x {size.height} pixels: "
            "clip it or correct its format"
        )


def clip_box(box: Box, size: ImageSize) -> Box:
    """Return the part of a box inside the image; raises `UserError` when there is none."""
    clipped = Box(max(box.x1, 0), max(box.y1, 0), min(box.x2, size.width), min(box.y2, size.height))
    check_box(clipped, size)
    return clipped


def boxes_to_text(boxes: Iterable[tuple[str, Sequence[int]]]) -> str:
    """Return labeled boxes as the JSON text of Qwen2.5-VL's and Qwen3-VL's answers to grounding questions."""
    return json.dumps([{"bbox_2d": list(values), "label": label} for label, values in boxes], ensure_ascii=False)


def boxes_from_text(text: str) -> list[tuple[str, tuple[float, ...]]]:
    """Return the labeled boxes in a text: JSON alone, in a code fence or within prose; anything else is ignored."""
    found = []
    end = 0
    for start in _BOX_LIST.finditer(text):
        if start.start() < end:
            continue
        try:
            items, end = json.JSONDecoder().raw_decode(text, start.start())
        except json.JSONDecodeError:
            continue
        for item in items:
            values = item.get("bbox_2d") if isinstance(item, dict) else None
            if isinstance(values, list) and len(values) == 4 and all(_is_number(value) for value in values):
                found.append((str(item.get("label", "")), tuple(values)))
    return found


def draw_boxes(image: Image.Image, boxes: Iterable[tuple[str, Box]]) -> Image.Image:
    """Return a copy of an image in RGB with labeled boxes drawn on it, for inspection; edges lie inside the box."""
    drawn = image.convert("RGB")
    brush = ImageDraw.Draw(drawn)
    width = max(1, min(image.size) // 200)
    font = ImageFont.load_default(size=max(10, min(image.size) // 40))
    for number, (label, box) in enumerate(boxes):
        color = _COLORS[number % len(_COLORS)]
        brush.rectangle((box.x1, box.y1, max(box.x1, box.x2 - 1), max(box.y1, box.y2 - 1)), outline=color, width=width)
        if label:
            _draw_label(brush, label, box, color, font, image.size)
    return drawn


def _draw_label(
    brush: ImageDraw.ImageDraw, label: str, box: Box, color: str, font: ImageFont.ImageFont, size: tuple[int, int]
) -> None:
    """Write a label in black on its box's color, above the box, or inside it where there is no room above."""
    left, top, right, bottom = brush.textbbox((0, 0), label, font=font)
    pad = max(1, (bottom - top) // 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(box.x1, size[0] - width))
    y = box.y1 - height if box.y1 >= height else min(box.y1, max(0, size[1] - height))
    brush.rectangle((x, y, x + width, y + height), fill=color)
    brush.text((x + pad - left, y + pad - top), label, fill="black", font=font)


def _round_edges(low: float, high: float, length: int, limit: int) -> tuple[int, int]:
    """Scale two edges from 0..length to 0..limit and round half up; at least one unit remains between them."""
    scale = Fraction(limit, length)
    first, last = (math.floor(Fraction(edge) * scale + Fraction(1, 2)) for edge in (low, high))
    if first == last and low < high:
        return (first, last + 1) if last < limit else (first - 1, last)
    return first, last


def _scale_exactly(value: float, scale: Fraction) -> float:
    """Multiply without rounding error; integral results are returned as integers."""
    product = Fraction(value) * scale
    return int(product) if product.denominator == 1 else float(product)


def _limit_of_space(space: str, size: ImageSize, resized: ImageSize | None) -> ImageSize:
    if space == "absolute":
        return size
    if space == "relative":
        return ImageSize(RELATIVE_LIMIT, RELATIVE_LIMIT)
    if space != "resized":
        raise _unknown_choice("space", space, SPACES)
    if resized is None:
        raise UserError("boxes in pixels after the resize need the resized size; get it from resized_size")
    return resized


def _parse_values(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) != 4 or not all(_is_number(value) for value in values):
        raise UserError(f"{list(values)} is not a box; expected 4 numbers")
    # As Python numbers: those of NumPy have a fixed width and overflow in exact fractions.
    a, b, c, d = (int(value) if isinstance(value, Integral) else float(value) for value in values)
    return a, b, c, d


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _format_box(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"


def _unknown_choice(what: str, given: str, known: Sequence[str]) -> UserError:
    return UserError(f"{what} {given!r} is unknown; choose one of {', '.join(known)}")

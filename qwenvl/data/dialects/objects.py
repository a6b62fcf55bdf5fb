"""Fill in `<ref-object>` and `<bbox>` from a record's `objects`, as ms-swift does, in Qwen3-VL's coordinates.

A box becomes `[x1, y1, x2, y2]`, integers from 0 to 1000 across the image: the value of `"bbox_2d"` in Qwen3-VL's
answers. A point becomes `[x, y]`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from qwenvl.data.boxes import RELATIVE_LIMIT, Box, ImageSize, check_box, to_space
from qwenvl.data.dialects.neutral import InvalidRecordError, format_value, is_missing
from qwenvl.data.records import Turn
from qwenvl.errors import UserError

_MARK = re.compile(r"<(ref-object|bbox)>(?!.*</\1>)", re.S)
_KEYS = frozenset(("ref", "bbox", "bbox_type", "image_id"))
# Pixels: more than any image has, and small enough for exact arithmetic.
_LARGEST = 1e7


def has_object_marks(turns: Sequence[Turn]) -> bool:
    """Return whether a text has a `<ref-object>` or a `<bbox>`; with a closing tag, it is markup of another kind."""
    return any("<" in turn.text and _MARK.search(turn.text) for turn in turns)


def fill_objects(turns: Sequence[Turn], objects: Any, size_of: Callable[[int], ImageSize]) -> list[Turn]:
    """Return the turns with their marks replaced by names and boxes, in order.

    `size_of(n)` returns the size of the record's image n, and is called for boxes in pixels. Raises
    `InvalidRecordError`.
    """
    if not isinstance(objects, dict) or objects.keys() - _KEYS:
        raise InvalidRecordError(
            f"`objects` is {format_value(objects)}, expected an object with {', '.join(sorted(_KEYS))}"
        )
    refs, boxes = _read_list(objects, "ref"), _read_list(objects, "bbox")
    for values, kind in ((refs, "ref-object"), (boxes, "bbox")):
        marks = sum(match[1] == kind for turn in turns for match in _MARK.finditer(turn.text))
        if marks != len(values):
            raise InvalidRecordError(f"{marks} <{kind}> in the text but {len(values)} in `objects`: make them equal")
    if not all(isinstance(ref, str) for ref in refs):
        raise InvalidRecordError(f"`ref` of `objects` is {format_value(refs)}, expected texts")
    texts = {"ref-object": iter(refs), "bbox": iter(list(_box_texts(boxes, objects, size_of)))}
    return [replace(turn, text=_MARK.sub(lambda match: next(texts[match[1]]), turn.text)) for turn in turns]


def _box_texts(boxes: list[Any], objects: dict[str, Any], size_of: Callable[[int], ImageSize]) -> Iterator[str]:
    box_type = objects.get("bbox_type")
    if box_type not in (None, "real", "norm1"):
        raise InvalidRecordError(f"`bbox_type` is {format_value(box_type)}, expected real (pixels) or norm1 (0 to 1)")
    numbers = _read_list(objects, "image_id") or [0] * len(boxes)
    if len(numbers) != len(boxes) or not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
        raise InvalidRecordError(
            f"`image_id` is {format_value(numbers)}, expected the number of an image (from 0) for each box"
        )
    for box, number in zip(boxes, numbers, strict=True):
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_coordinate, box)):
            raise InvalidRecordError(
                f"`bbox` of `objects` has {format_value(box)}, expected 4 numbers (or 2 for a point)"
            )
        size = ImageSize(1, 1) if box_type == "norm1" else size_of(number)
        yield _point_text(box, size) if len(box) == 2 else _box_text(Box(*box), size)


def _box_text(box: Box, size: ImageSize) -> str:
    try:
        check_box(box, size)
    except UserError as error:
        raise InvalidRecordError(f"`objects`: {error.reason}") from None
    return str(list(to_space(box, "relative", size)))


def _point_text(point: list[float], size: ImageSize) -> str:
    if not (0 <= point[0] <= size.width and 0 <= point[1] <= size.height):
        raise InvalidRecordError(f"`objects`: the point {point} is outside its image of {size.width} x {size.height}")
    scaled = (point[0] * RELATIVE_LIMIT / size.width, point[1] * RELATIVE_LIMIT / size.height)
    return str([int(value + 0.5) for value in scaled])


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _read_list(objects: dict[str, Any], key: str) -> list[Any]:
    value = objects.get(key)
    if is_missing(value):
        return []
    if not isinstance(value, list):
        raise InvalidRecordError(f"`{key}` of `objects` is {format_value(value)}, expected a list")
    return value

"""Tests of box conversions: worked examples, and properties over many random images and boxes (seeded)."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from qwenvl.data.boxes import (
    FORMATS,
    SPACES,
    Box,
    ImageSize,
    boxes_from_text,
    boxes_to_text,
    check_box,
    clip_box,
    draw_boxes,
    from_format,
    from_space,
    resized_size,
    to_format,
    to_space,
)
from qwenvl.errors import UserError

SIZE = ImageSize(height=200, width=400)


def _cases(largest: int = 5000, count: int = 500) -> Iterator[tuple[ImageSize, Box]]:
    """Yield random images with a random box of whole pixels inside each, those that touch the edges among them."""
    draw = random.Random(7)
    for _ in range(count):
        size = ImageSize(draw.randint(1, largest), draw.randint(1, largest))
        x1, y1 = draw.randrange(size.width), draw.randrange(size.height)
        box = Box(x1, y1, draw.randint(x1 + 1, size.width), draw.randint(y1 + 1, size.height))
        yield size, draw.choice([box, box, Box(0, 0, size.width, size.height)])


@pytest.mark.parametrize(
    ("box_format", "values"),
    [
        ("xyxy", (100, 50, 300, 100)),
        ("xywh", (100, 50, 200, 50)),
        ("coco", (100, 50, 200, 50)),
        ("voc", (101, 51, 300, 100)),
        ("yolo", (0.5, 0.375, 0.5, 0.25)),
    ],
)
def test_each_format_reads_and_writes_the_same_box(box_format: str, values: tuple[float, ...]):
    assert from_format(values, box_format, SIZE) == Box(100, 50, 300, 100)
    assert to_format(Box(100, 50, 300, 100), box_format, SIZE) == values


@pytest.mark.parametrize(
    ("space", "values"),
    [("absolute", (100, 50, 300, 100)), ("resized", (25, 15, 75, 30)), ("relative", (250, 250, 750, 500))],
)
def test_each_space_reads_and_writes_the_same_box(space: str, values: tuple[int, ...]):
    resized = ImageSize(height=60, width=100)
    assert to_space(Box(100, 50, 300, 100), space, SIZE, resized) == values
    assert from_space(values, space, SIZE, resized) == Box(100, 50, 300, 100)


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "coco", "voc"])
def test_whole_pixels_go_through_every_pixel_format_exactly(box_format: str):
    for size, box in _cases():
        written = to_format(box, box_format, size)
        assert all(type(value) is int for value in written)
        assert from_format(written, box_format, size) == box


def test_yolo_gives_back_the_box_to_a_millionth_of_a_pixel_and_stays_within_0_and_1():
    for size, box in _cases():
        written = to_format(box, "yolo", size)
        assert all(0 <= value <= 1 for value in written)
        assert from_format(written, "yolo", size) == pytest.approx(box, abs=1e-6)


def test_every_pair_of_formats_agrees():
    for size, box in _cases(count=100):
        for first in FORMATS:
            middle = from_format(to_format(box, first, size), first, size)
            for second in FORMATS:
                assert to_format(middle, second, size) == pytest.approx(to_format(box, second, size), abs=1e-6)


def test_relative_coordinates_are_exact_for_images_up_to_1000_pixels():
    for size, box in _cases(largest=1000):
        relative = to_space(box, "relative", size)
        again = from_space(relative, "relative", size)
        assert tuple(round(value) for value in again) == tuple(box)


def test_relative_coordinates_are_off_by_half_a_unit_at_most_for_larger_images():
    for size, box in _cases():
        if box.x2 - box.x1 < size.width / 1000 or box.y2 - box.y1 < size.height / 1000:
            continue
        again = from_space(to_space(box, "relative", size), "relative", size)
        assert abs(again.x1 - box.x1) <= size.width / 2000 and abs(again.x2 - box.x2) <= size.width / 2000
        assert abs(again.y1 - box.y1) <= size.height / 2000 and abs(again.y2 - box.y2) <= size.height / 2000


@pytest.mark.parametrize("space", SPACES)
def test_what_a_model_writes_comes_back_as_the_same_numbers(space: str):
    draw = random.Random(1)
    for size, _ in _cases():
        resized = ImageSize(28 * draw.randint(1, 60), 28 * draw.randint(1, 60))
        limit = {"absolute": size, "resized": resized, "relative": ImageSize(1000, 1000)}[space]
        x1, y1 = draw.randrange(limit.width), draw.randrange(limit.height)
        written = (x1, y1, draw.randint(x1 + 1, limit.width), draw.randint(y1 + 1, limit.height))
        assert to_space(from_space(written, space, size, resized), space, size, resized) == written


@pytest.mark.parametrize("space", SPACES)
def test_a_box_inside_the_image_stays_a_box_inside_the_range(space: str):
    for size, box in _cases():
        resized = ImageSize(56, 84)
        x1, y1, x2, y2 = to_space(box, space, size, resized)
        limit = {"absolute": size, "resized": resized, "relative": ImageSize(1000, 1000)}[space]
        assert 0 <= x1 < x2 <= limit.width and 0 <= y1 < y2 <= limit.height


def test_numbers_of_numpy_are_taken_and_do_not_overflow():
    values = np.array([1000, 900, 2000, 1900], dtype=np.int16)
    box = from_format(values, "xyxy", ImageSize(4000, 4000))
    assert to_space(box, "relative", ImageSize(4000, 4000)) == (250, 225, 500, 475)


@pytest.mark.parametrize("factor", [28, 32])
def test_the_resized_size_is_that_of_the_processor_and_keeps_to_its_limits(factor: int):
    limits = (4 * factor**2, 1280 * factor**2)
    for size, _ in _cases(count=50):
        if max(size) / min(size) > 100:
            continue
        resized = resized_size(size, factor, *limits)
        assert resized.height % factor == resized.width % factor == 0
        assert limits[0] <= resized.height * resized.width <= limits[1]
    with pytest.raises(UserError, match="10 x 3000 pixels"):
        resized_size(ImageSize(3000, 10), factor, *limits)


def test_text_of_boxes_is_read_back_from_plain_fenced_and_running_text():
    boxes = [("heart", (250, 300, 700, 850)), ('a "quoted" [{label}]', (0, 0, 1000, 1000))]
    text = boxes_to_text(boxes)
    assert boxes_from_text(text) == boxes
    assert boxes_from_text(f"```json\n{text}\n```") == boxes
    assert boxes_from_text(f"There are two: {text}. And [1, 2] is none.") == boxes


def test_text_without_boxes_has_none():
    for text in ("", "[]", "[{}]", '[{"bbox_2d": [1, 2, 3]}]', '[{"bbox_2d": "x", "label": 1}]', '[{"bbox_2d": [1,'):
        assert boxes_from_text(text) == []


def test_boxes_that_are_none_or_leave_the_image_are_named():
    check_box(Box(0, 0, 400, 200), SIZE)
    for box, message in [
        (Box(10, 10, 10, 20), "is not a box"),
        (Box(10, 20, 30, 10), "is not a box"),
        (Box(0, 0, float("nan"), 10), "is not a box"),
        (Box(-1, 0, 10, 10), r"box \(-1, 0, 10, 10\) exceeds the image of 400 x 200 pixels"),
        (Box(0, 0, 401, 10), "exceeds the image"),
    ]:
        with pytest.raises(UserError, match=message):
            check_box(box, SIZE)


def test_clipping_keeps_the_part_inside():
    assert clip_box(Box(-5, 10, 500, 300), SIZE) == Box(0, 10, 400, 200)
    with pytest.raises(UserError, match="is not a box"):
        clip_box(Box(401, 0, 500, 10), SIZE)


@pytest.mark.parametrize("wrong", [(1, 2, 3), (1, 2, 3, "4"), (1, 2, 3, float("inf")), (1, 2, 3, True)])
def test_what_is_not_four_numbers_is_refused(wrong: tuple):
    with pytest.raises(UserError, match="expected 4 numbers"):
        from_format(wrong, "xyxy", SIZE)
    with pytest.raises(UserError, match="expected 4 numbers"):
        from_space(wrong, "relative", SIZE)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match="'pascal' is unknown; choose one of xyxy, xywh, coco, voc, yolo"):
        from_format((1, 2, 3, 4), "pascal", SIZE)
    with pytest.raises(UserError, match="'pixels' is unknown; choose one of absolute, resized, relative"):
        to_space(Box(1, 2, 3, 4), "pixels", SIZE)
    with pytest.raises(UserError, match="need the resized size"):
        to_space(Box(1, 2, 3, 4), "resized", SIZE)


def test_drawn_edges_lie_inside_the_box_and_the_original_is_untouched():
    image = Image.new("L", (100, 80))
    drawn = np.asarray(draw_boxes(image, [("", Box(10, 20, 60, 70))]))
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (10, 60, 20, 70)
    assert not np.asarray(image).any()
    whole = np.asarray(draw_boxes(image, [("all", Box(0, 0, 100, 80))]))
    assert whole[0].any(axis=1).all() and whole[-1].any(axis=1).all()


@pytest.mark.parametrize("box", [Box(10, 40, 90, 75), Box(10, 0, 90, 20), Box(85, 60, 100, 80), Box(0, 0, 100, 80)])
def test_a_label_is_written_in_black_on_its_own_color_inside_the_image(box: Box):
    label = "nodule"
    plain = np.asarray(draw_boxes(Image.new("RGB", (100, 80), "white"), [("", box)]))
    labeled = np.asarray(draw_boxes(Image.new("RGB", (100, 80), "white"), [(label, box)]))
    changed = (plain != labeled).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    tag = labeled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Text and its anti-aliased edges on red: no white of the image shines through.
    assert tag[..., 1:].max() < 60
    assert (tag[..., 0] < 128).sum() > 20
    assert tag.shape[1] > 20

"""Tests of filling in names and boxes from a record's `objects`."""

from typing import Any

import pytest

from qwenvl.data.boxes import ImageSize
from qwenvl.data.dialects.neutral import InvalidRecordError
from qwenvl.data.dialects.objects import fill_objects, has_object_marks
from qwenvl.data.records import Turn

SIZE = ImageSize(height=100, width=200)


def fill(text: str, **objects: Any) -> str:
    """Return a question whose marks are filled in."""
    return fill_objects([Turn("user", text), Turn("assistant", "Yes.")], objects, lambda number: SIZE)[0].text


def test_names_and_boxes_replace_their_marks_in_order():
    filled = fill(
        "<ref-object> <bbox>, <ref-object> <bbox>", ref=["a", "b"], bbox=[[0, 0, 100, 50], [20, 10, 200, 100]]
    )
    assert filled == "a [0, 0, 500, 500], b [100, 100, 1000, 1000]"


def test_a_point_and_a_normalized_box_are_scaled_to_1000():
    assert fill("<bbox>", bbox=[[100, 25]]) == "[500, 250]"
    assert fill("<bbox>", bbox=[[0.1, 0.2, 0.5, 1]], bbox_type="norm1") == "[100, 200, 500, 1000]"


def test_a_box_is_scaled_by_the_size_of_its_own_image():
    sizes = [SIZE, ImageSize(50, 50)]
    objects = {"bbox": [[0, 0, 50, 50], [0, 0, 50, 50]], "image_id": [1, 0]}
    (turn,) = fill_objects([Turn("user", "<bbox> <bbox>")], objects, sizes.__getitem__)
    assert turn.text == "[0, 0, 1000, 1000] [0, 0, 250, 500]"


def test_sizes_are_not_read_for_normalized_boxes():
    turns = [Turn("user", "<bbox>")]
    objects = {"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1"}
    assert fill_objects(turns, objects, lambda number: pytest.fail("a size was read"))[0].text == "[0, 0, 1000, 1000]"


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ({"bbox": [[0, 0, 1, 1], [0, 0, 2, 2]]}, "1 <bbox> in the text but 2 in `objects`"),
        ({"bbox": [[0, 0, 201, 1]]}, "exceeds the image of 200 x 100 pixels"),
        ({"bbox": [[5, 0, 5, 1]]}, "is not a box"),
        ({"bbox": [[0, 101]]}, r"the point \[0, 101\] is outside its image"),
        ({"bbox": [[0, 0, 1]]}, "expected 4 numbers"),
        ({"bbox": [[0, 0, 1, True]]}, "expected 4 numbers"),
        ({"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1000"}, "expected real .pixels. or norm1"),
        ({"bbox": [[0, 0, 1, 1]], "image_id": [0, 1]}, "`image_id` is .*for each box"),
        ({"bbox": [[0, 0, 1, 1]], "color": "red"}, "expected an object with bbox, bbox_type, image_id, ref"),
        ({"bbox": "0 0 1 1"}, "`bbox` of `objects` is .*expected a list"),
    ],
)
def test_objects_that_do_not_match_are_refused(objects: dict, reason: str):
    with pytest.raises(InvalidRecordError, match=reason):
        fill("<bbox>", **objects)


def test_marks_with_a_closing_tag_are_other_markup():
    assert has_object_marks([Turn("user", "What is <bbox>?")])
    assert not has_object_marks([Turn("user", "<bbox>1 2</bbox>"), Turn("assistant", "1 < 2")])

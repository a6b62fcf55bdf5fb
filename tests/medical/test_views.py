"""Tests of choosing the images of a study."""

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.records import DroppedError
from qwenvl.medical.views import DEFAULT_MAX_IMAGES, ViewOptions, group_images

IMAGES = ["F1", "F2", "L1", "L2", "L3"]


def _is_frontal(image: str) -> bool:
    return image.startswith("F")


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        (ViewOptions("frontal"), [("F1",)]),
        (ViewOptions("image"), [("F1",), ("F2",), ("L1",), ("L2",), ("L3",)]),
        (ViewOptions("study"), [("F1", "F2", "L1", "L2")]),
        (ViewOptions("study", 5), [("F1", "F2", "L1", "L2", "L3")]),
        (ViewOptions("study", 1), [("F1",)]),
    ],
)
def test_images_are_grouped_by_the_kind_of_views(options: ViewOptions, groups: list[tuple[str, ...]]):
    assert group_images(IMAGES, options, _is_frontal) == groups
    assert DEFAULT_MAX_IMAGES == 4


def test_a_study_without_a_suitable_image_is_dropped():
    with pytest.raises(DroppedError, match="no usable image file"):
        group_images([], ViewOptions("study"), _is_frontal)
    with pytest.raises(DroppedError, match="no frontal image"):
        group_images(["L1"], ViewOptions("frontal"), _is_frontal)
    assert group_images(["L1"], ViewOptions("study"), _is_frontal) == [("L1",)]


@pytest.mark.parametrize("kind", ["frontal", "image"])
def test_a_limit_that_would_have_no_effect_is_refused(kind: str):
    with pytest.raises(UserError, match=f"--max_images has no effect with --views {kind}"):
        ViewOptions(kind, 2)

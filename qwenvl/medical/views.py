"""Choose which images of a study go into its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qwenvl.errors import UserError
from qwenvl.medical.records import DroppedError

VIEWS = ("frontal", "image", "study")
DEFAULT_MAX_IMAGES = 4

Image = TypeVar("Image")


@dataclass(frozen=True)
class ViewOptions:
    """Which images a record shows.

    Attributes:
        kind: `frontal` for one frontal image per study, `image` for one record per image, `study` for all images of
            the study in one record.
        max_images: With `kind="study"`, the most images of a record; None for `DEFAULT_MAX_IMAGES`.

    Raises:
        UserError: For a `max_images` that would have no effect.
    """

    kind: str = "frontal"
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.max_images is not None and self.kind != "study":
            raise UserError(f"--max_images has no effect with --views {self.kind}: give --views study, or leave it out")


def group_images(
    images: Sequence[Image], options: ViewOptions, is_frontal: Callable[[Image], bool]
) -> list[tuple[Image, ...]]:
    """Return the images of each record of a study.

    Args:
        images: The usable images of the study, frontal ones first.
        options: Which of them are used.
        is_frontal: Whether an image is a frontal view.

    Raises:
        DroppedError: For a study without an image that can be used.
    """
    if not images:
        raise DroppedError("no usable image file")
    if options.kind == "image":
        return [(image,) for image in images]
    if options.kind == "study":
        return [tuple(images[: options.max_images or DEFAULT_MAX_IMAGES])]
    if not is_frontal(images[0]):
        raise DroppedError("no frontal image")
    return [(images[0],)]

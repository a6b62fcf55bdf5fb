"""Pixel and frame limits: each flag acts, and is saved with the processor."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoProcessor, ProcessorMixin

from qwenvl.data.annotations import Record
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.pixel_limits import set_pixel_limits
from qwenvl.errors import UserError
from tests.vision.small_encoders import swap, with_encoder

FLAGS = {
    "max_pixels": 128 * 128,
    "min_pixels": 32 * 32,
    "video_fps": 2.0,
    "video_max_frames": 8,
    "video_min_frames": 2,
    "video_max_pixels": 8 * 64 * 64,
    "video_min_pixels": 2 * 32 * 32,
}


def grids(processor: ProcessorMixin, record: Record, **flags: float | None) -> tuple[list[int], list[int]]:
    """Return the grids (t, h, w), in patches, of the record's image and of its video under the limits."""
    set_pixel_limits(processor, DataArguments(**FLAGS | flags))
    sample = RecordEncoder(processor).encode(record)
    return sample["image_grid_thw"][0].tolist(), sample["video_grid_thw"][0].tolist()


@pytest.mark.parametrize(
    ("flags", "image", "video"),
    [
        ({}, [1, 6, 10], [2, 4, 4]),
        ({"max_pixels": 64 * 64}, [1, 2, 4], [2, 4, 4]),
        ({"min_pixels": 192 * 192, "max_pixels": 256 * 256}, [1, 10, 16], [2, 4, 4]),
        ({"video_fps": 4.0}, [1, 6, 10], [4, 4, 4]),
        ({"video_fps": 4.0, "video_max_frames": 6}, [1, 6, 10], [3, 4, 4]),
        ({"video_min_frames": 6}, [1, 6, 10], [3, 4, 4]),
        ({"video_max_pixels": 4 * 32 * 32}, [1, 6, 10], [2, 2, 2]),
        ({"video_min_pixels": 4 * 96 * 96, "video_max_pixels": 4 * 128 * 128}, [1, 6, 10], [2, 6, 6]),
    ],
    ids=["none", "max_pixels", "min_pixels", "fps", "max_frames", "min_frames", "video_max_pixels", "video_min_pixels"],
)
def test_each_limit_acts_on_what_it_names_alone(
    own_processor: ProcessorMixin,
    make_record: Callable[..., Record],
    flags: dict[str, float],
    image: list[int],
    video: list[int],
):
    record = make_record("<image><video>?", "Yes.", images=("wide.png",), videos=("clip.mp4",))
    assert grids(own_processor, record, **flags) == (image, video)


def test_a_limit_left_out_is_the_official_repositorys(own_processor: ProcessorMixin):
    set_pixel_limits(own_processor, DataArguments())
    assert dict(own_processor.image_processor.size) == {"shortest_edge": 16 * 28 * 28, "longest_edge": 576 * 28 * 28}
    assert dict(own_processor.video_processor.size) == {"shortest_edge": 256 * 28 * 28, "longest_edge": 1024 * 28 * 28}
    video = own_processor.video_processor
    assert (video.fps, video.min_frames, video.max_frames) == (2.0, 4, 8)


def test_limits_are_saved_with_the_processor(
    own_processor: ProcessorMixin, make_record: Callable[..., Record], tmp_path: Path
):
    record = make_record("<image><video>?", "Yes.", images=("wide.png",), videos=("clip.mp4",))
    expected = grids(own_processor, record, max_pixels=64 * 64, video_max_pixels=4 * 32 * 32)
    own_processor.save_pretrained(tmp_path)
    sample = RecordEncoder(AutoProcessor.from_pretrained(tmp_path)).encode(record)
    assert (sample["image_grid_thw"][0].tolist(), sample["video_grid_thw"][0].tolist()) == expected


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"min_pixels": 500, "max_pixels": 400}, "--min_pixels 500 is above --max_pixels 400"),
        ({"video_min_pixels": 10, "video_max_pixels": 9}, "--video_min_pixels 10 is above --video_max_pixels 9"),
        ({"video_min_frames": 9}, "--video_min_frames 9 is above --video_max_frames 8"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(own_processor: ProcessorMixin, flags: dict, told: str):
    with pytest.raises(UserError, match=told):
        set_pixel_limits(own_processor, DataArguments(**FLAGS | flags))


def test_a_processor_for_images_of_one_size_keeps_it_and_refuses_limits(standin: Path):
    _, processor = swap(standin, with_encoder("dinov2"))
    size = dict(processor.image_processor.size)
    unset = dict.fromkeys(("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels"))
    set_pixel_limits(processor, DataArguments(**FLAGS | unset))
    assert dict(processor.image_processor.size) == size
    with pytest.raises(UserError, match="--max_pixels have no effect"):
        set_pixel_limits(processor, DataArguments(**FLAGS))

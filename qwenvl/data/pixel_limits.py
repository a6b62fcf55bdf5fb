"""Set the limits of pixels and frames on a processor, from the flags that bound images and videos."""

from typing import Any

from transformers import ProcessorMixin, Qwen2VLImageProcessor

from qwenvl.data.arguments import OFFICIAL_PIXEL_LIMITS, DataArguments
from qwenvl.errors import UserError

_PIXEL_LIMITS = ("shortest_edge", "longest_edge")


def has_official_pixels(processor: ProcessorMixin) -> bool:
    """Whether images are patchified by the official processor, also where a custom tower reassembles them."""
    image_processor = processor.image_processor
    return isinstance(image_processor, Qwen2VLImageProcessor) or bool(getattr(image_processor, "official", None))


def takes_pixel_limits(media_processor: Any) -> bool:
    """Whether the size of an image or video processor is a pair of pixel limits."""
    return all(dict(media_processor.size).get(key) is not None for key in _PIXEL_LIMITS)


def set_pixel_limits(processor: ProcessorMixin, data_args: DataArguments) -> None:
    """Set the limits on the processor, so that they apply to every later call and are saved with it.

    Raises `UserError` for limits that contradict each other, and for limits
    given to an encoder with a fixed input size.
    """
    given = {name: getattr(data_args, name) for name in OFFICIAL_PIXEL_LIMITS}
    if has_official_pixels(processor):
        given = {name: OFFICIAL_PIXEL_LIMITS[name] if value is None else value for name, value in given.items()}
    _set_size(processor.image_processor, "", given["min_pixels"], given["max_pixels"])
    video_processor = processor.video_processor
    _set_size(video_processor, "video_", given["video_min_pixels"], given["video_max_pixels"])
    video_processor.fps = data_args.video_fps
    video_processor.min_frames, video_processor.max_frames = data_args.video_min_frames, data_args.video_max_frames
    # Off: the limits are those of the whole video, as in the official training code for Qwen3-VL. Unset, Transformers
    # warns that the default will change; can go when it no longer does:
    # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/qwen3_vl/video_processing_qwen3_vl.py#L283
    video_processor.cap_pixels_per_frame = False


def _set_size(media_processor: Any, prefix: str, min_pixels: int | None, max_pixels: int | None) -> None:
    given = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    given = {key: value for key, value in given.items() if value is not None}
    if not takes_pixel_limits(media_processor):
        if given:
            raise UserError(
                f"--{prefix}min_pixels and --{prefix}max_pixels have no effect: this vision encoder takes images of "
                f"one size, {dict(media_processor.size)}; leave them out"
            )
        return
    size = {key: dict(media_processor.size)[key] for key in _PIXEL_LIMITS} | given
    if size["shortest_edge"] > size["longest_edge"]:
        raise UserError(
            f"--{prefix}min_pixels {size['shortest_edge']} is above --{prefix}max_pixels {size['longest_edge']}"
        )
    media_processor.size = size

"""Count the tokens of images and videos for a custom tower, and preprocess their pixels for it.

`image_grid_thw` and `video_grid_thw` count frames, rows and columns of tokens, and merge_size is 1, so placeholders,
rotary positions and features agree for any number of tokens.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from transformers import (
    AutoImageProcessor,
    AutoVideoProcessor,
    BatchFeature,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ImageInput, make_flat_list_of_images, torch_pil_interpolation_mapping
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as official_image_size
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as official_video_size
from transformers.video_utils import (
    VideoInput,
    VideoMetadata,
    is_valid_video,
    make_batched_metadata,
    make_batched_videos,
)

from qwenvl.errors import UserError
from qwenvl.vision.options import QWEN
from qwenvl.vision.patches import PatchGrid, PatchLayout, patchify, with_header
from qwenvl.vision.preprocessing import DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS, Geometry
from qwenvl.vision.tower import CustomVisionConfig

IMAGE_CALL = {"return_tensors", "do_convert_rgb", "input_data_format", "data_format", "device", "disable_grouping"}
VIDEO_CALL = IMAGE_CALL | {"video_metadata", "do_sample_frames", "return_metadata", "fps", "num_frames"}
SAMPLING = ("fps", "num_frames", "min_frames", "max_frames", "do_sample_frames")


class _CustomVision:
    """Shared by both processors: the geometry, and the official processor's settings in input mode "qwen"."""

    geometry: dict | None
    official: dict | None
    size: Any

    @property
    def takes_pixel_limits(self) -> bool:
        """Whether `size` with shortest_edge and longest_edge (areas in pixels) has an effect: not with a fixed size."""
        return self.official is not None or Geometry.from_dict(self.geometry).preprocessing.keeps_aspect

    def grid_for(self, height: int, width: int, num_frames: int = 1) -> tuple[int, int]:
        """Return (rows, columns) of tokens of an image, or of each frame of a video, of (height, width) pixels."""
        if self.official is not None:
            height, width = self.official_size(height, width, num_frames)
        return self.geometry_for(num_frames).grid(height, width)

    def geometry_for(self, num_frames: int) -> Geometry:
        """Return the geometry, with the limits of `size` if they have an effect."""
        geometry = Geometry.from_dict(self.geometry)
        if self.official is None and geometry.preprocessing.keeps_aspect:
            return geometry.with_limits(*self.area_limits(num_frames))
        return geometry

    def area_limits(self, num_frames: int) -> tuple[int, int]:
        """Return (min, max) of an image's or frame's area: its share of `size`, at most the encoder's own limit.

        As in Qwen3-VL, the limits of a video apply to frames * height * width.
        """
        published = Geometry.from_dict(self.geometry).preprocessing.max_pixels
        largest = self.size["longest_edge"] // num_frames
        largest = largest if published is None else min(largest, published)
        return min(self.size["shortest_edge"] // num_frames, largest), largest

    def official_size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """Return the size (height, width) that the official processor gives an image or frame."""
        raise NotImplementedError

    def rows_or_pixels(self, media: list[torch.Tensor]) -> tuple[torch.Tensor, list[list[int]]]:
        """Convert media, each (T, 3, H, W) in 0..255, to pixel values and token grids.

        Pixel values are (all frames, 3, h, w) if the input size is fixed, otherwise rows of patches with headers.
        """
        geometries = [self.geometry_for(len(frames)) for frames in media]
        prepared = [geometry.prepare(frames) for geometry, frames in zip(geometries, media, strict=True)]
        tokens, wanted = geometries[0].tokens, geometries[0].preprocessing
        grids = [[len(pixels), *tokens.grid(*pixels.shape[-2:])] for pixels in prepared]
        if not wanted.keeps_aspect:
            return torch.cat(prepared), grids
        layout = PatchLayout(tokens.patch_size)
        return torch.cat([with_header(*patchify(pixels, layout)) for pixels in prepared]), grids

    def official_rows(
        self, rows: torch.Tensor, patch_grids: list[list[int]], frames: list[int]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Return the official processor's rows with headers, and the token grids."""
        geometry = Geometry.from_dict(self.geometry)
        patch = self.official["patch_size"]
        parts, grids = [], []
        pieces = rows.split([t * h * w for t, h, w in patch_grids])
        for piece, (t, h, w), count in zip(pieces, patch_grids, frames, strict=True):
            parts.append(with_header(piece, PatchGrid(t, h, w, count)))
            grids.append([count, *geometry.grid(h * patch, w * patch)])
        return torch.cat(parts), grids


class CustomVisionImageProcessor(_CustomVision, TorchvisionBackend):
    """Preprocesses images for a custom encoder; an image may also be given as its features (h, w, D_vis).

    An image takes `rows * columns` tokens of `grid_for`, the number that `get_number_of_image_patches` returns.
    """

    model_input_names = ["pixel_values", "image_grid_thw"]
    merge_size = 1
    temporal_patch_size = 1

    def __init__(
        self, geometry: dict | None = None, hidden_size: int = 0, official: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        self.hidden_size = hidden_size
        self.official = official

    def preprocess(self, images: ImageInput, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Return `pixel_values` and `image_grid_thw` (images, 3) for one image or a list of them."""
        _refuse_unknown(kwargs, IMAGE_CALL)
        images = make_flat_list_of_images(self.fetch_images(images))
        cached = [self._is_features(image) for image in images]
        if any(cached):
            if not all(cached):
                raise UserError("some images are given as features and some as pixels; a batch holds one kind only")
            values, grids = _features_as_values(images)
        elif self.official is not None:
            official = Qwen2VLImageProcessor(**{**self.official, "size": dict(self.size)})
            made = official(images, return_tensors="pt")
            values, grids = self.official_rows(made["pixel_values"], made["image_grid_thw"].tolist(), [1] * len(images))
        else:
            values, grids = self.rows_or_pixels([self._one_frame(image) for image in images])
        data = {"pixel_values": values, "image_grid_thw": torch.tensor(grids, dtype=torch.long)}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Return the number of tokens that an image of (height, width) pixels takes."""
        rows, columns = self.grid_for(height, width)
        return rows * columns

    def blank_features(self, height: int, width: int) -> torch.Tensor:
        """Return zero features (rows, columns, D_vis) of an image of that size, for images from a cache."""
        return torch.zeros(*self.grid_for(height, width), self.hidden_size)

    def official_size(self, height: int, width: int, num_frames: int = 1) -> tuple[int, int]:
        """Return the size (height, width) that the official processor gives an image."""
        factor = self.official["patch_size"] * self.official["merge_size"]
        return official_image_size(height, width, factor, self.size["shortest_edge"], self.size["longest_edge"])

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which an image of (height, width) pixels is resized before it is cropped or padded."""
        if self.official is not None:
            return self.official_size(height, width)
        return self.geometry_for(1).resized_size(height, width)

    @property
    def resized_by(self) -> Image.Resampling | None:
        """Pillow's filter of the name of the one that images are resized by; None where it has none."""
        if self.official is not None:
            return Image.Resampling(self.official["resample"])
        interpolation = Geometry.from_dict(self.geometry).preprocessing.interpolation
        return torch_pil_interpolation_mapping.get(InterpolationMode(interpolation))

    def _one_frame(self, image: Any) -> torch.Tensor:
        """Return an image as (1, 3, H, W) in 0..255."""
        if isinstance(image, Image.Image):
            # A view with the channels last in memory. The library's `process_image` copies them to the front, which for
            # an X-ray of 8 megapixels takes longer than its resize; can go once it returns such a view:
            # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/image_processing_backends.py#L151
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
        return self.process_image(image, do_convert_rgb=True)[None]

    def _is_features(self, image: Any) -> bool:
        floats = isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3
        return floats and image.shape[-1] == self.hidden_size


class CustomVisionVideoProcessor(_CustomVision, Qwen3VLVideoProcessor):
    """Samples frames as Qwen3-VL does and preprocesses each for a custom encoder.

    Each frame is one temporal patch, so the text has a timestamp for each frame; frames that the official processor
    repeats to fill its last pair are dropped again.
    """

    def __init__(self, geometry: dict | None = None, official: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        self.official = official
        self.merge_size = 1
        self.temporal_patch_size = 1

    def preprocess(
        self,
        videos: VideoInput,
        video_metadata: list[VideoMetadata] | None = None,
        do_sample_frames: bool | None = None,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values_videos` and `video_grid_thw` (videos, 3), with `video_metadata` if asked for."""
        _refuse_unknown(kwargs, VIDEO_CALL)
        videos = make_batched_videos(videos)
        if not all(is_valid_video(video) for video in videos):
            raise UserError("the custom tower's video processor takes frames, not paths; read the file first")
        metadata = make_batched_metadata(videos, video_metadata=video_metadata)
        if self.do_sample_frames if do_sample_frames is None else do_sample_frames:
            wanted = {key: kwargs[key] for key in ("fps", "num_frames") if kwargs.get(key) is not None}
            for i, video in enumerate(videos):
                metadata[i].frames_indices = self.sample_frames(metadata[i], **wanted)
                videos[i] = video[metadata[i].frames_indices]
        media = [_channels_first(video) for video in videos]
        values, grids = self.rows_or_pixels(media) if self.official is None else self._official_values(media)
        data = {"pixel_values_videos": values, "video_grid_thw": torch.tensor(grids, dtype=torch.long)}
        output = BatchFeature(data=data, tensor_type=return_tensors)
        if return_metadata:
            output["video_metadata"] = metadata
        return output

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: dict | None = None
    ) -> int:
        """Return the number of tokens that `num_frames` sampled frames of (height, width) pixels take."""
        rows, columns = self.grid_for(height, width, num_frames)
        return num_frames * rows * columns

    def official_size(self, height: int, width: int, num_frames: int = 1) -> tuple[int, int]:
        """Return the size (height, width) that the official processor gives each of the frames."""
        pair = self.official["temporal_patch_size"]
        factor = self.official["patch_size"] * self.official["merge_size"]
        limits = self.size["shortest_edge"], self.size["longest_edge"]
        return official_video_size(max(num_frames, pair), height, width, pair, factor, *limits)

    def _official_values(self, media: list[torch.Tensor]) -> tuple[torch.Tensor, list[list[int]]]:
        # Without a value the processor warns that its default will change; `official_size` counts without the cap.
        # Can go with that option: https://github.com/huggingface/transformers/pull/48071
        settings = {**self.official, "size": dict(self.size), "cap_pixels_per_frame": False}
        official = Qwen3VLVideoProcessor(**settings)
        # The processor repeats the last frame of an odd number, but refuses fewer frames than fill a temporal patch.
        # Can go once it takes a single frame: https://github.com/QwenLM/Qwen3-VL/issues/1689
        pair = official.temporal_patch_size
        filled = [torch.cat([frames, frames[-1:].expand(max(0, pair - len(frames)), -1, -1, -1)]) for frames in media]
        made = official(videos=filled, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
        counts = [len(frames) for frames in media]
        return self.official_rows(made["pixel_values_videos"], made["video_grid_thw"].tolist(), counts)


def swap_processor(processor: ProcessorMixin, vision_config: CustomVisionConfig) -> ProcessorMixin:
    """Return a processor with the given one's tokenizer and chat template and the custom tower's media processors.

    The sampling of frames is the given one's. Area limits are those of the given one in input mode "qwen" and for
    videos, otherwise the encoder's.
    """
    image, video = processor.image_processor, processor.video_processor
    by_qwen = vision_config.input_mode == QWEN
    wanted = vision_config.geometry().preprocessing
    geometry = vision_config.geometry().to_dict()
    fixed = {"height": wanted.height, "width": wanted.width}
    min_pixels = DEFAULT_MIN_PIXELS if wanted.min_pixels is None else wanted.min_pixels
    max_pixels = DEFAULT_MAX_PIXELS if wanted.max_pixels is None else wanted.max_pixels
    area = {"shortest_edge": min(min_pixels, max_pixels), "longest_edge": max_pixels}
    image_size, video_size = (area, dict(video.size)) if wanted.keeps_aspect else (fixed, fixed)
    sampling = {name: getattr(video, name) for name in SAMPLING}
    return type(processor)(
        image_processor=CustomVisionImageProcessor(
            geometry=geometry,
            hidden_size=vision_config.hidden_size,
            official=image.to_dict() if by_qwen else None,
            size=dict(image.size) if by_qwen else image_size,
        ),
        tokenizer=processor.tokenizer,
        video_processor=CustomVisionVideoProcessor(
            geometry=geometry,
            official=video.to_dict() if by_qwen else None,
            size=dict(video.size) if by_qwen else video_size,
            **sampling,
        ),
        chat_template=processor.chat_template,
    )


def _features_as_values(images: list[torch.Tensor]) -> tuple[torch.Tensor, list[list[int]]]:
    """Return features (h, w, D_vis) as values (tokens, 1, D_vis), which can be concatenated, and their grids."""
    values = torch.cat([image.flatten(0, 1).unsqueeze(1) for image in images])
    return values, [[1, *image.shape[:2]] for image in images]


def _channels_first(video: Any) -> torch.Tensor:
    """Return frames (T, 3, H, W) of a video given as (T, H, W, 3) or (T, 3, H, W)."""
    frames = torch.as_tensor(video)
    return frames if frames.shape[1] == 3 else frames.permute(0, 3, 1, 2).contiguous()


def _refuse_unknown(given: dict, known: set[str]) -> None:
    """Raise `UserError` for settings that these processors do not take in a call, instead of ignoring them."""
    unknown = sorted(key for key, value in given.items() if value is not None and key not in known)
    if unknown:
        raise UserError(
            f"the custom tower's processor takes no {', '.join(unknown)} in a call; set resize policy and input "
            "size when the tower is made, and limits through the processor's `size`"
        )


AutoImageProcessor.register(
    CustomVisionConfig,
    image_processor_classes={"torchvision": CustomVisionImageProcessor, "pil": CustomVisionImageProcessor},
)
AutoVideoProcessor.register(CustomVisionConfig, CustomVisionVideoProcessor)

"""Flags of the data: which samples are read, and how they are turned into batches."""

from dataclasses import dataclass, field
from typing import Literal

from qwenvl.data.media.images import MAX_IMAGE_MEGAPIXELS, MEGAPIXEL
from qwenvl.errors import UserError

# Defaults of the official repository, for limits that are not given; a custom encoder keeps its own.
OFFICIAL_PIXEL_LIMITS = {
    "max_pixels": 28 * 28 * 576,
    "min_pixels": 28 * 28 * 16,
    "video_max_pixels": 28 * 28 * 1024,
    "video_min_pixels": 28 * 28 * 256,
}


@dataclass
class DataArguments:
    """Which samples are read and how they are turned into batches."""

    dataset_use: str = field(
        default="",
        metadata={
            "help": "Comma-separated datasets: names registered in qwenvl/data/__init__.py, or paths of .json/.jsonl "
            "files; name%%50 takes half of one, sampled with --data_seed."
        },
    )
    eval_dataset_use: str = field(
        default="", metadata={"help": "Datasets, given in the same way, for loss and token accuracy during training."}
    )
    data_flatten: bool = field(default=False, metadata={"help": "Concatenate the batch into one row, without padding."})
    data_packing: bool = field(
        default=False,
        metadata={"help": "Fill rows up to --model_max_length with whole samples, planned from image headers."},
    )
    thinking_turns: Literal["each", "last"] = field(
        default="each",
        metadata={
            "help": "For chats whose earlier answers have thoughts, which a Thinking model's template leaves out: each "
            "makes one sample per question, last supervises only the answer to the last one."
        },
    )
    max_pixels: int | None = field(default=None, metadata={"help": "Most pixels of an image after resizing (451584)."})
    min_pixels: int | None = field(default=None, metadata={"help": "Fewest pixels of an image after resizing (12544)."})
    video_fps: float = field(default=2.0, metadata={"help": "Frames sampled per second of video."})
    video_max_frames: int = field(default=8, metadata={"help": "Most frames sampled from a video."})
    video_min_frames: int = field(default=4, metadata={"help": "Fewest frames sampled from a video."})
    video_max_pixels: int | None = field(
        default=None, metadata={"help": "Most pixels of a video after resizing, over all its frames (802816)."}
    )
    video_min_pixels: int | None = field(
        default=None, metadata={"help": "Fewest pixels of a video after resizing, over all its frames (200704)."}
    )
    max_image_megapixels: int = field(
        default=MAX_IMAGE_MEGAPIXELS,
        metadata={"help": "Refuse an image file of more megapixels, each of 1,048,576 pixels (64 is 8192 x 8192)."},
    )
    bad_sample_policy: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "error: stop at the first unusable sample; skip: log it, count it and continue."},
    )
    max_bad_samples: int = field(
        default=100,
        metadata={"help": "Under --bad_sample_policy skip, stop when more samples than this are unusable."},
    )
    media_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the image sizes read from headers (default ~/.cache/qwenvl)."},
    )

    def __post_init__(self) -> None:
        if self.bad_sample_policy not in ("error", "skip"):
            raise UserError(f"--bad_sample_policy {self.bad_sample_policy!r} is unknown; choose error or skip")
        if self.max_image_megapixels < 1:
            raise UserError(f"--max_image_megapixels {self.max_image_megapixels}: give 1 or more")
        if self.thinking_turns not in ("each", "last"):
            raise UserError(f"--thinking_turns {self.thinking_turns!r} is unknown; choose each or last")
        if self.max_bad_samples < 0:
            raise UserError(f"--max_bad_samples {self.max_bad_samples}: give 0 or more")
        if self.video_min_frames > self.video_max_frames:
            raise UserError(
                f"--video_min_frames {self.video_min_frames} is above --video_max_frames {self.video_max_frames}"
            )
        for name in OFFICIAL_PIXEL_LIMITS:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)}: give a number of pixels above 0")
        if self.video_min_frames < 2:
            raise UserError(
                f"--video_min_frames {self.video_min_frames}: Qwen3-VL reads frames in pairs; give 2 or more"
            )
        if self.video_fps <= 0:
            raise UserError(f"--video_fps {self.video_fps}: give a number above 0")

    @property
    def max_image_pixels(self) -> int:
        """The most pixels that an image file may have."""
        return self.max_image_megapixels * MEGAPIXEL

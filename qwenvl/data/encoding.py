"""Encode one record as one sample: chat template, images and frames, tokens, labels and positions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from qwenvl.data.annotations import Record
from qwenvl.data.collators import MEDIA_KEYS, Sample
from qwenvl.data.labels import IGNORE_INDEX, AssistantMarkers, make_labels
from qwenvl.data.media.frames import load_clip
from qwenvl.data.media.image_reader import ImageReader
from qwenvl.data.media.images import MAX_IMAGE_PIXELS
from qwenvl.data.messages import to_messages, tools_of
from qwenvl.data.normalization import AS_LEVELS, PatchNormalizer, patch_normalizer
from qwenvl.data.positions import MediaTokens, mrope_position_ids
from qwenvl.data.rendered_words import SpecialTokens, find_missing_text
from qwenvl.errors import UserError

Video = tuple[torch.Tensor, VideoMetadata]
# An image, also as uint8 (3, h, w), or its encoder features (rows, columns, D_vis) from a cache.
ImageOrFeatures = Image.Image | torch.Tensor

# In pixels. The processor enlarges it if its own smallest image is larger.
_BLANK_SIDE = 32


# What a chat template raises for unknown roles, calls or tools.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)


def supervised_answers(record: Record) -> list[bool]:
    """Return for each answer of a record whether the loss covers it."""
    return [turn.supervised for turn in record.turns if turn.role == "assistant"]


class RecordEncoder:
    """Encodes records as rendered text and as samples, with the processor of one model."""

    def __init__(self, processor: ProcessorMixin, max_image_pixels: int = MAX_IMAGE_PIXELS) -> None:
        self.processor = processor
        self.markers = AssistantMarkers.from_processor(processor)
        tokenizer = processor.tokenizer
        self._special_tokens = SpecialTokens(tokenizer)
        self._answer_marks = (tokenizer.decode(self.markers.header), tokenizer.decode([self.markers.end]))
        # Reads an image file; what is read is for the image processor.
        self.load_image: Callable[[str], ImageOrFeatures] = ImageReader(processor.image_processor, max_image_pixels)
        self._image_flags: dict[str, Any] = {"return_tensors": "pt"}
        self._blank_image: ImageOrFeatures = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE))
        self._media_tokens = MediaTokens(
            processor.image_token_id, processor.video_token_id, processor.image_processor.merge_size
        )

    def use_features(self, load_features: Callable[[str], torch.Tensor]) -> None:
        """Load encoder features (rows, columns, D_vis) in place of images; `load_features` returns them for a path."""
        self.load_image = load_features
        self._blank_image = self.processor.image_processor.blank_features(_BLANK_SIDE, _BLANK_SIDE)

    def defer_normalization(self) -> PatchNormalizer | None:
        """Leave `pixel_values` of images as uint8 levels, and return what normalizes them; None where that cannot be.

        What is returned has to be applied to every batch before the model sees it.
        """
        normalizer = patch_normalizer(self.processor.image_processor)
        if normalizer is not None:
            self._image_flags |= AS_LEVELS
        return normalizer

    @property
    def placeholders(self) -> dict[str, int]:
        """The token that stands for each kind of medium, as often as it has features."""
        return {"image": self._media_tokens.image_id, "video": self._media_tokens.video_id}

    @property
    def opens_thoughts(self) -> bool:
        """Whether this is a Thinking model, whose every answer begins with a thought."""
        return bool(self.markers.thought)

    def render(self, records: Sequence[Record]) -> list[str]:
        """Return each record's chat as text, with one placeholder for each medium.

        Raises what the chat template raises for a record that it cannot render.
        """
        chats = [to_messages(record) for record in records if record.tools is None]
        texts = iter(self.processor.apply_chat_template(chats) if chats else [])
        return [next(texts) if record.tools is None else self._render_with_tools(record) for record in records]

    def render_checked(self, records: Sequence[Record]) -> list[str | UserError]:
        """Return each record's chat as text, or an error if the template drops any of its content."""
        try:
            texts: list[str | UserError] = [*self.render(records)]
        except TEMPLATE_ERRORS:
            texts = [self._render_alone(record) for record in records]
        return [
            text if isinstance(text, UserError) else self._check_rendered(record, text)
            for record, text in zip(records, texts, strict=True)
        ]

    def _render_with_tools(self, record: Record) -> str:
        return self.processor.apply_chat_template(to_messages(record), tools=tools_of(record))

    def _render_alone(self, record: Record) -> str | UserError:
        try:
            return self.render([record])[0]
        except TEMPLATE_ERRORS as error:
            return UserError(f"the model's chat template rejects this record: {' '.join(str(error).split())}")

    def _check_rendered(self, record: Record, text: str) -> str | UserError:
        flaw = self._special_tokens.find_flaw(record) or find_missing_text(record, text, *self._answer_marks)
        return text if flaw is None else UserError(flaw)

    def encode(self, record: Record) -> Sample:
        """Return the record's input_ids (L,), labels (L,), position_ids (3, L), and pixels and grids of its media.

        Raises `UserError` for a file that cannot be read.
        """
        images = [self.load_image(path) for path in record.images]
        videos = [load_clip(path, self.processor.video_processor) for path in record.videos]
        sample = self._process(self.render([record])[0], images, videos)
        return sample | {"labels": make_labels(sample["input_ids"], self.markers, supervised_answers(record))}

    def blank_samples(self) -> dict[str, Sample]:
        """Return the smallest sample of each kind ("text", "image", "video"), none of whose tokens is supervised."""
        num_frames = self.processor.video_processor.temporal_patch_size
        frames = torch.zeros(num_frames, 3, _BLANK_SIDE, _BLANK_SIDE, dtype=torch.uint8)
        metadata = VideoMetadata(num_frames, fps=1.0, frames_indices=list(range(num_frames)))
        media: dict[str, tuple[list, list]] = {
            "text": ([], []),
            "image": ([self._blank_image], []),
            "video": ([], [(frames, metadata)]),
        }
        blanks = {}
        for kind, (images, videos) in media.items():
            part = {"type": "text", "text": "-"} if kind == "text" else {"type": kind}
            text = self.processor.apply_chat_template([{"role": "user", "content": [part]}])
            sample = self._process(text, images, videos)
            blanks[kind] = sample | {"labels": torch.full_like(sample["input_ids"], IGNORE_INDEX)}
        return blanks

    def _process(self, text: str, images: list[ImageOrFeatures], videos: list[Video]) -> Sample:
        media: dict[str, Any] = {}
        if images:
            media |= {"images": images, "images_kwargs": self._image_flags}
        if videos:
            frames, metadata = zip(*videos, strict=True)
            flags = {"video_metadata": list(metadata), "do_sample_frames": False, "return_tensors": "pt"}
            media |= {"videos": list(frames), "videos_kwargs": flags}
        # No tensors of the text and no kinds of tokens: these take the processor three times as long as to tokenize.
        inputs = self.processor(text=[text], return_mm_token_type_ids=False, **media)
        sample = {key: inputs[key] for pair in MEDIA_KEYS.values() for key in pair if key in inputs}
        sample["input_ids"] = torch.tensor(inputs["input_ids"][0])
        sample["position_ids"] = mrope_position_ids(
            sample["input_ids"], self._media_tokens, sample.get("image_grid_thw"), sample.get("video_grid_thw")
        )
        return sample

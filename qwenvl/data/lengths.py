"""Count the exact number of tokens of each record from its text and from the headers of its media."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from qwenvl.data.annotations import BadSample, BadSampleTracker, Record
from qwenvl.data.bulk_tokenizer import BulkTokenizer
from qwenvl.data.dialects.neutral import InvalidRecordError
from qwenvl.data.encoding import RecordEncoder, supervised_answers
from qwenvl.data.labels import supervised_mask
from qwenvl.data.media.images import MAX_IMAGE_PIXELS
from qwenvl.data.media.sizes import ImageSize, MediaSizes, Unreadable, scan_media_sizes, size_of
from qwenvl.data.media.videos import VideoInfo, frames_metadata, sample_frame_indices
from qwenvl.errors import UserError

# Records whose tokens are in memory at a time.
_CHUNK = 2048

_Counted = TypeVar("_Counted")


@dataclass(frozen=True)
class TokenCounts:
    """Counts for each record, int64 (n,): tokens in total, supervised tokens, and patches of its media.

    `bad` maps the index of a record that cannot be rendered, or whose media cannot be read, to the reason; its counts
    are zero.
    """

    total: np.ndarray
    supervised: np.ndarray
    patches: np.ndarray
    bad: dict[int, BadSample] = field(default_factory=dict)

    @classmethod
    def zeros(cls, num_records: int) -> "TokenCounts":
        """Return counts of zero for `num_records` records."""
        return cls(*(np.zeros(num_records, np.int64) for _ in range(3)))

    def of(self, indices: np.ndarray) -> "TokenCounts":
        """Return the counts of the records at these indices, none of which is bad."""
        return TokenCounts(self.total[indices], self.supervised[indices], self.patches[indices])


class _Media(NamedTuple):
    """Counts that are not in a record's text: placeholders beyond the one written for each grid, and patches."""

    extra_tokens: int
    patches: int


class TokenCounter:
    """Counts the output of `RecordEncoder.encode` without decoding any image."""

    def __init__(self, encoder: RecordEncoder) -> None:
        self._encoder = encoder
        self._processor = encoder.processor
        self._tokenize = BulkTokenizer(encoder.processor.tokenizer)
        # Many media share a few sizes.
        self._image = cache(self._count_image)
        self._video = cache(self._count_video)

    def count(self, records: Sequence[Record], sizes: MediaSizes) -> TokenCounts:
        """Return the exact counts; `sizes` has an entry for every image and video of the records."""
        counts = TokenCounts.zeros(len(records))
        for start in range(0, len(records), _CHUNK):
            self._count_chunk(records[start : start + _CHUNK], start, sizes, counts)
        return counts

    def _count_chunk(self, records: Sequence[Record], start: int, sizes: MediaSizes, counts: TokenCounts) -> None:
        indices, texts, media, supervised = [], [], [], []
        rendered = self._encoder.render_checked(records)
        for index, (record, text) in enumerate(zip(records, rendered, strict=True), start):
            if isinstance(text, UserError):
                counts.bad[index] = BadSample.of(record, text.path, text.reason)
                continue
            try:
                text, record_media = self._shorten_text(record, text, sizes)
            except InvalidRecordError as error:
                counts.bad[index] = BadSample.of(record, error.path, error.reason)
                continue
            indices.append(index)
            texts.append(text)
            media.append(record_media)
            supervised += supervised_answers(record)
        if not indices:
            return
        ids, lengths = self._tokenize(texts)
        mask, _ = supervised_mask(ids, self._encoder.markers, np.array(supervised, dtype=bool))
        extra_tokens, counts.patches[indices] = np.array(media).T
        counts.total[indices] = lengths + extra_tokens
        counts.supervised[indices] = np.add.reduceat(mask, lengths.cumsum() - lengths, dtype=np.int64)

    def _shorten_text(self, record: Record, text: str, sizes: MediaSizes) -> tuple[str, _Media]:
        """Return the text with one placeholder for each image or frame, and the counts of its media beyond them."""
        media = [_apply_to_size(path, size_of(sizes, path, "image"), self._image) for path in record.images]
        if record.videos:
            # Timestamps are text: they are written out, so that they are counted as in the encoded sample.
            pieces = text.split(self._processor.video_token)
            for number, path in enumerate(record.videos):
                frames, video = _apply_to_size(path, size_of(sizes, path, "video"), self._video)
                pieces[number] += frames
                media.append(video)
            text = "".join(pieces)
        return text, _Media(sum(each.extra_tokens for each in media), sum(each.patches for each in media))

    def _count_image(self, size: ImageSize) -> _Media:
        image_processor = self._processor.image_processor
        patches = image_processor.get_number_of_image_patches(*size, {})
        return _Media(patches // image_processor.merge_size**2 - 1, patches)

    def _count_video(self, info: VideoInfo) -> tuple[str, _Media]:
        """Return the processor's text for a video with one placeholder per grid, and the counts beyond it."""
        video_processor = self._processor.video_processor
        indices = sample_frame_indices(info, video_processor)
        merge_size = video_processor.merge_size
        patches = video_processor.get_num_of_video_patches(len(indices), info.height, info.width, {})
        num_grids = -(-len(indices) // video_processor.temporal_patch_size)
        one_token_each = {
            "video_grid_thw": torch.tensor([[num_grids, merge_size, merge_size]]),
            "video_metadata": [frames_metadata(info, indices)],
        }
        text = self._processor.replace_video_token(one_token_each, 0)
        return text, _Media(patches // merge_size**2 - num_grids, patches)


def read_media_sizes(
    records: Sequence[Record], cache_dir: str | None = None, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> MediaSizes:
    """Return the sizes of all images and videos of the records, from the cache in `cache_dir` where it has them."""
    return scan_media_sizes(*media_paths(records), cache_dir, max_image_pixels)


def media_paths(records: Iterable[Record]) -> tuple[set[str], set[str]]:
    """Return the paths of all images and of all videos, in one pass over the records."""
    images: set[str] = set()
    videos: set[str] = set()
    for record in records:
        images.update(record.images)
        videos.update(record.videos)
    return images, videos


def find_usable(records: Sequence[Record], counts: TokenCounts, limit: int, tracker: BadSampleTracker) -> np.ndarray:
    """Return the indices of the records that can be read and have at most `limit` tokens, (n,); report the others."""
    too_long = np.flatnonzero(counts.total > limit).tolist()
    for index in sorted([*counts.bad, *too_long]):
        images, videos = len(records[index].images), len(records[index].videos)
        reason = (
            f"{counts.total[index]} tokens are more than --model_max_length {limit}; it has {images} images and "
            f"{videos} videos: raise the limit, give fewer or smaller ones (--max_pixels, --video_max_pixels; with a "
            "custom encoder --vision_input_size), or shorten the text"
        )
        tracker.report(counts.bad.get(index, BadSample.of(records[index], None, reason)))
    usable = counts.total <= limit
    usable[list(counts.bad)] = False
    return np.flatnonzero(usable)


def _apply_to_size(path: str, size: ImageSize | VideoInfo | Unreadable, count: Callable[[Any], _Counted]) -> _Counted:
    """Return `count(size)` for the size of a file; raises `InvalidRecordError` if there is no usable size."""
    if isinstance(size, Unreadable):
        raise InvalidRecordError(size.reason, path)
    try:
        return count(size)
    # The processors reject extreme aspect ratios, and videos of fewer frames than one temporal patch.
    except ValueError as error:
        raise InvalidRecordError(f"the processor rejects its size {tuple(size)}: {error}", path) from error

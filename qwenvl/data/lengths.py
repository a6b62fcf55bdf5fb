"""Count the exact number of tokens that a record will take, counted from its text and from its media's headers."""

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

# Records whose tokens are held at a time.
_CHUNK = 2048

_Counted = TypeVar("_Counted")


@dataclass(frozen=True)
class TokenCounts:
    """What each record takes, int64 (n,): tokens in all, supervised tokens, and patches of its media.

    `bad` tells, by position, why a record cannot be rendered or its media cannot be read; such a record takes nothing.
    """

    total: np.ndarray
    supervised: np.ndarray
    patches: np.ndarray
    bad: dict[int, BadSample] = field(default_factory=dict)

    @classmethod
    def zeros(cls, num_records: int) -> "TokenCounts":
        """Return counts of zero for so many records."""
        return cls(*(np.zeros(num_records, np.int64) for _ in range(3)))

    def of(self, places: np.ndarray) -> "TokenCounts":
        """Return the counts of the records at these places, none of which is bad."""
        return TokenCounts(self.total[places], self.supervised[places], self.patches[places])


class _Media(NamedTuple):
    """What is not counted from a record's text: placeholders beyond the one written for each grid, and patches."""

    extra_tokens: int
    patches: int


class TokenCounter:
    """Counts what `RecordEncoder.encode` will give, without decoding a picture."""

    def __init__(self, encoder: RecordEncoder) -> None:
        self._encoder = encoder
        self._processor = encoder.processor
        self._tokenize = BulkTokenizer(encoder.processor.tokenizer)
        # Many media share few sizes.
        self._image = cache(self._count_image)
        self._video = cache(self._count_video)

    def count(self, records: Sequence[Record], sizes: MediaSizes) -> TokenCounts:
        """Return the exact counts; `sizes` holds every picture and video of the records."""
        counts = TokenCounts.zeros(len(records))
        for start in range(0, len(records), _CHUNK):
            self._count_chunk(records[start : start + _CHUNK], start, sizes, counts)
        return counts

    def _count_chunk(self, records: Sequence[Record], start: int, sizes: MediaSizes, counts: TokenCounts) -> None:
        places, texts, media, supervised = [], [], [], []
        rendered = self._encoder.render_checked(records)
        for place, (record, text) in enumerate(zip(records, rendered, strict=True), start):
            if isinstance(text, UserError):
                counts.bad[place] = BadSample.of(record, text.path, text.reason)
                continue
            try:
                text, record_media = self._shortened(record, text, sizes)
            except InvalidRecordError as error:
                counts.bad[place] = BadSample.of(record, error.path, error.reason)
                continue
            places.append(place)
            texts.append(text)
            media.append(record_media)
            supervised += supervised_answers(record)
        if not places:
            return
        ids, lengths = self._tokenize(texts)
        mask, _ = supervised_mask(ids, self._encoder.markers, np.array(supervised, dtype=bool))
        extra_tokens, counts.patches[places] = np.array(media).T
        counts.total[places] = lengths + extra_tokens
        counts.supervised[places] = np.add.reduceat(mask, lengths.cumsum() - lengths, dtype=np.int64)

    def _shortened(self, record: Record, text: str, sizes: MediaSizes) -> tuple[str, _Media]:
        """Return the text with one placeholder for each picture or frame, and what its media take beside it."""
        media = [_checked(path, size_of(sizes, path, "image"), self._image) for path in record.images]
        if record.videos:
            # Time stamps are text: they are written out, so that they are counted as they will be read.
            pieces = text.split(self._processor.video_token)
            for number, path in enumerate(record.videos):
                frames, video = _checked(path, size_of(sizes, path, "video"), self._video)
                pieces[number] += frames
                media.append(video)
            text = "".join(pieces)
        return text, _Media(sum(each.extra_tokens for each in media), sum(each.patches for each in media))

    def _count_image(self, size: ImageSize) -> _Media:
        image_processor = self._processor.image_processor
        patches = image_processor.get_number_of_image_patches(*size, {})
        return _Media(patches // image_processor.merge_size**2 - 1, patches)

    def _count_video(self, info: VideoInfo) -> tuple[str, _Media]:
        """Return the processor's text for a video with one placeholder a grid, and what it takes beside it."""
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
    """Return the sizes of all pictures and videos of the records, from the cache in `cache_dir` where it knows them."""
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
    """Return the places of the records that can be read and have at most `limit` tokens, (n,), reporting the others."""
    too_long = np.flatnonzero(counts.total > limit).tolist()
    for place in sorted([*counts.bad, *too_long]):
        images, videos = len(records[place].images), len(records[place].videos)
        reason = (
            f"{counts.total[place]} tokens are more than --model_max_length {limit}; it has {images} images and "
            f"{videos} videos: raise the limit, give fewer or smaller ones (--max_pixels, --video_max_pixels; with a "
            "custom encoder --vision_input_size), or shorten the text"
        )
        tracker.report(counts.bad.get(place, BadSample.of(records[place], None, reason)))
    usable = counts.total <= limit
    usable[list(counts.bad)] = False
    return np.flatnonzero(usable)


def _checked(path: str, size: ImageSize | VideoInfo | Unreadable, count: Callable[[Any], _Counted]) -> _Counted:
    """Apply `count` to the size of a file; raises `InvalidRecordError` where there is no usable size."""
    if isinstance(size, Unreadable):
        raise InvalidRecordError(size.reason, path)
    try:
        return count(size)
    # The processors refuse extreme aspect ratios, and videos of fewer frames than one temporal patch.
    except ValueError as error:
        raise InvalidRecordError(f"the processor refuses its size {tuple(size)}: {error}", path) from error

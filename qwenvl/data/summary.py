"""Summarize a run's batches before the first of them is loaded."""

from dataclasses import dataclass

import numpy as np

from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.packing import PackSampler, SampleRef
from qwenvl.data.record_table import count_media


@dataclass(frozen=True)
class DataSummary:
    """One pass over a dataset: totals of all processes, and maxima over the micro-batches of one process.

    `padding_share` is the share of computed tokens that belong to no sample; dummy media are not counted.
    """

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_packs: int
    micro_batches: int
    padding_share: float
    longest_sample: int
    max_tokens: int
    most_supervised: int
    most_patches: int
    num_with_images: int
    num_with_videos: int
    num_text_only: int


def summarize(dataset: SupervisedDataset, sampler: PackSampler, padded: bool) -> DataSummary:
    """Summarize the sampler's current epoch without loading a sample; `padded`: each sample is a padded row."""
    counts = dataset.counts
    computed = max_tokens = most_supervised = most_patches = 0
    # One batch at a time: those of a million samples would take hundreds of megabytes.
    for batch in (batch for batches in sampler.all_batches() for batch in batches):
        indices = [ref.index for ref in batch]
        tokens = _computed_tokens(counts.total[indices], padded)
        computed += tokens
        max_tokens = max(max_tokens, tokens)
        most_supervised = max(most_supervised, _supervised(batch, counts.supervised))
        most_patches = max(most_patches, int(counts.patches[indices].sum()))
    tokens = int(counts.total.sum())
    num_images, num_videos = count_media(dataset.records)
    return DataSummary(
        num_samples=len(dataset),
        num_tokens=tokens,
        num_supervised=int(counts.supervised.sum()),
        num_packs=len(sampler.packs),
        micro_batches=len(sampler),
        padding_share=1 - tokens / computed,
        longest_sample=int(counts.total.max()),
        max_tokens=max_tokens,
        most_supervised=most_supervised,
        most_patches=most_patches,
        num_with_images=int((num_images > 0).sum()),
        num_with_videos=int((num_videos > 0).sum()),
        num_text_only=int(((num_images == 0) & (num_videos == 0)).sum()),
    )


def _computed_tokens(lengths: np.ndarray, padded: bool) -> int:
    return int(lengths.max() * len(lengths) if padded else lengths.sum())


def _supervised(batch: list[SampleRef], supervised: np.ndarray) -> int:
    return int(supervised[[ref.index for ref in batch if not ref.is_padding]].sum())

"""Owns what is known of a run's batches before the first of them is made."""

from dataclasses import dataclass

import numpy as np

from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.packing import Draw, PackSampler


@dataclass(frozen=True)
class DataSummary:
    """One pass over a data set: totals of all processes, and the most that one micro-batch of one process holds.

    `padding_share` is the part of all computed tokens that belongs to no sample; dummy media are not counted.
    """

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_packs: int
    micro_batches: int
    padding_share: float
    longest_sample: int
    most_tokens: int
    most_supervised: int
    most_patches: int
    num_with_images: int
    num_with_videos: int
    num_text_only: int


def summarize(dataset: SupervisedDataset, sampler: PackSampler, padded: bool) -> DataSummary:
    """Go through the sampler's present epoch without loading a sample; `padded` says whether samples are rows."""
    counts = dataset.counts
    batches = [batch for batches in sampler.all_batches() for batch in batches]
    drawn = [[draw.index for draw in batch] for batch in batches]
    computed = np.array([_computed_tokens(counts.total[indices], padded) for indices in drawn])
    tokens = int(counts.total.sum())
    return DataSummary(
        num_samples=len(dataset),
        num_tokens=tokens,
        num_supervised=int(counts.supervised.sum()),
        num_packs=len(sampler.packs),
        micro_batches=len(sampler),
        padding_share=float(1 - tokens / computed.sum()),
        longest_sample=int(counts.total.max()),
        most_tokens=int(computed.max()),
        most_supervised=max(_supervised(batch, counts.supervised) for batch in batches),
        most_patches=max(int(counts.patches[indices].sum()) for indices in drawn),
        num_with_images=sum(bool(record.images) for record in dataset.records),
        num_with_videos=sum(bool(record.videos) for record in dataset.records),
        num_text_only=sum(not record.images and not record.videos for record in dataset.records),
    )


def _computed_tokens(lengths: np.ndarray, padded: bool) -> int:
    return int(lengths.max() * len(lengths) if padded else lengths.sum())


def _supervised(batch: list[Draw], supervised: np.ndarray) -> int:
    return int(supervised[[draw.index for draw in batch if not draw.filler]].sum())

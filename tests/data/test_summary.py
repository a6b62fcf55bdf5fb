"""Tests of what is counted of a dataset before its first batch."""

from collections.abc import Callable

import numpy as np

from qwenvl.data.annotations import Record
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.lengths import TokenCounts
from qwenvl.data.packing import PackSampler
from qwenvl.data.summary import summarize


def test_samples_are_counted_by_what_they_show(make_record: Callable[..., Record]):
    records = [
        make_record("<image>?", "A", images=("red.png",)),
        make_record("<image><video>?", "A", images=("red.png",), videos=("clip.mp4",)),
        make_record("?", "A"),
        make_record("?", "B"),
    ]
    lengths = np.array([4, 3, 2, 1])
    packs = [[index] for index in range(4)]
    dataset = SupervisedDataset(records, TokenCounts(lengths, lengths, lengths), packs, encoder=None)
    summary = summarize(dataset, PackSampler(packs, 2, 1, 0, 0, lengths), padded=False)
    assert (summary.num_with_images, summary.num_with_videos, summary.num_text_only) == (2, 1, 2)
    assert (summary.num_samples, summary.num_tokens) == (4, 10)

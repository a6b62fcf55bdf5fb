"""Describe the samples of a run in a few words that a checkpoint keeps, to tell when they are other ones."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.data_processor import SupervisedDataset

# Where a record was read is not what it says: a data set may be moved.
_LOCATION_FIELDS = ("source", "row", "place")
_MEDIA_FIELDS = ("images", "videos")
_turn_values = attrgetter(*(field.name for field in dataclasses.fields(Turn)))
_record_values = attrgetter(
    *(
        field.name
        for field in dataclasses.fields(Record)
        if field.name not in (*_LOCATION_FIELDS, *_MEDIA_FIELDS, "turns")
    )
)


def describe_data(dataset: SupervisedDataset) -> dict[str, Any]:
    """Return the numbers of records and tokens, and a digest of the records, their lengths and their packs.

    Media count by their paths below the folder that they share, so that the digest stays when all of them are moved.
    """
    root = len(_shared_folder(dataset.records))
    digest = hashlib.sha256()
    for record in dataset.records:
        media = [[path[root:] for path in getattr(record, name)] for name in _MEDIA_FIELDS]
        digest.update(repr((list(map(_turn_values, record.turns)), media, _record_values(record))).encode())
    for counts in (dataset.counts.total, dataset.counts.supervised):
        digest.update(np.ascontiguousarray(counts, np.int64).tobytes())
    for numbers in (map(len, dataset.packs), chain.from_iterable(dataset.packs)):
        digest.update(np.fromiter(numbers, np.int64).tobytes())
    return {
        "records": len(dataset.records),
        "tokens": int(dataset.counts.total.sum()),
        "sha256": digest.hexdigest(),
    }


def _shared_folder(records: Sequence[Record]) -> str:
    """Return the folder, with its last separator, in which all media of the records lie; "" if there is none."""
    folders = {path.rpartition(os.sep)[0] for record in records for path in (*record.images, *record.videos)}
    prefix = os.path.commonprefix([f"{folder}{os.sep}" for folder in folders])
    return prefix[: prefix.rfind(os.sep) + 1]

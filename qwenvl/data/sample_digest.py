"""Identify the samples of a run by a digest of their content, their lengths and their packs."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np

from qwenvl.data.lengths import TokenCounts
from qwenvl.data.packing import PackTable
from qwenvl.data.records import Record, Turn

# The location of a record is not part of its content: a dataset may be moved.
_LOCATION_FIELDS = ("source", "row", "location")
_MEDIA_FIELDS = ("images", "videos")
_turn_values = attrgetter(*(field.name for field in dataclasses.fields(Turn)))
_record_values = attrgetter(
    *(
        field.name
        for field in dataclasses.fields(Record)
        if field.name not in (*_LOCATION_FIELDS, *_MEDIA_FIELDS, "turns")
    )
)


def digest_samples(records: Sequence[Record], counts: TokenCounts, packs: PackTable) -> str:
    """Return a SHA-256 of the records, their lengths and their packs.

    Media are identified by their paths below their common folder, so that moving all of them keeps the digest.
    """
    root = len(_shared_folder(path for record in records for path in (*record.images, *record.videos)))
    digest = hashlib.sha256()
    for record in records:
        media = [[path[root:] for path in getattr(record, name)] for name in _MEDIA_FIELDS]
        digest.update(repr((list(map(_turn_values, record.turns)), media, _record_values(record))).encode())
    for numbers in (counts.total, counts.supervised, np.diff(packs.ends, prepend=0), packs.indices):
        digest.update(np.ascontiguousarray(numbers, np.int64).tobytes())
    return digest.hexdigest()


def _shared_folder(paths: Iterable[str]) -> str:
    """Return the common folder of all files, with its last separator; "" if there is none."""
    shared: str | None = None
    for path in paths:
        if shared is None or not path.startswith(shared):
            folder = f"{path.rpartition(os.sep)[0]}{os.sep}"
            prefix = folder if shared is None else os.path.commonprefix([shared, folder])
            shared = prefix[: prefix.rfind(os.sep) + 1]
    return shared or ""

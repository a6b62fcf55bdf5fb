"""Describe the samples of a run for its checkpoints, to detect when they change."""

from typing import Any

from qwenvl.data.data_processor import SupervisedDataset


def describe_data(dataset: SupervisedDataset) -> dict[str, Any]:
    """Return the numbers of records and tokens, and a digest of the records, their lengths and their packs."""
    return {
        "records": len(dataset.records),
        "tokens": int(dataset.counts.total.sum()),
        "sha256": dataset.digest,
    }

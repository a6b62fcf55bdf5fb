from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qwenvl.checkpoint.data_digest import describe_data
from qwenvl.data.annotations import Record, Turn
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.lengths import TokenCounts

RECORDS = [
    Record("a.json", row, (Turn("user", "<image>\nWhat?"), Turn("assistant", f"It is {row}.")), (f"/data/{row}/x.png",))
    for row in range(3)
]


def described(
    records: Sequence[Record] = RECORDS, lengths: Sequence[int] = (5, 6, 7), packs: Sequence = ((0, 1), (2,))
):
    counts = TokenCounts(np.array(lengths), np.ones(len(lengths), np.int64), np.ones(len(lengths), np.int64))
    return describe_data(SupervisedDataset(records, counts, packs, None))


def test_a_moved_data_set_is_the_same() -> None:
    moved = [
        replace(record, source="b.json", row=record.row + 9, images=tuple(f"/mnt{path}" for path in record.images))
        for record in RECORDS
    ]

    assert described(moved) == described()
    assert described()["records"] == 3 and described()["tokens"] == 18


@pytest.mark.parametrize(
    "other",
    [
        {"records": RECORDS[:2], "lengths": (5, 6), "packs": ((0, 1),)},
        {"records": RECORDS[::-1]},
        {"records": [*RECORDS[:2], replace(RECORDS[2], images=("/data/1/x.png",))]},
        {"records": [*RECORDS[:2], replace(RECORDS[2], tools="[]")]},
        {"records": [*RECORDS[:2], replace(RECORDS[2], turns=(*RECORDS[2].turns[:1], Turn("assistant", "No.")))]},
        {
            "records": [
                *RECORDS[:2],
                replace(RECORDS[2], turns=(RECORDS[2].turns[0], replace(RECORDS[2].turns[1], supervised=False))),
            ]
        },
        {"lengths": (5, 6, 8)},
        {"packs": ((0,), (1, 2))},
    ],
)
def test_other_samples_lengths_or_packs_are_reported(other: dict) -> None:
    assert described(**other)["sha256"] != described()["sha256"]


def test_records_of_text_alone_are_described() -> None:
    assert described([replace(record, images=()) for record in RECORDS])["records"] == 3

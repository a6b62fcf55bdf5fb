"""Tests of the digest of samples, which checkpoints keep: it stays from version to version."""

import os

import numpy as np
import pytest

from qwenvl.data.lengths import TokenCounts
from qwenvl.data.packing import PackTable
from qwenvl.data.records import Record, Turn
from qwenvl.data.sample_digest import _shared_folder, digest_samples


def test_the_digest_of_old_checkpoints_is_still_that_of_their_samples():
    turns = (Turn("user", "<image>\nWhat?"), Turn("assistant", "It is ü.", thought="R"))
    records = [Record("a.json", row, turns, (f"/data/{row}/x.png",), (), f"row {row}") for row in range(3)]
    counts = TokenCounts(np.array([5, 6, 7]), np.array([1, 2, 3]), np.zeros(3, np.int64))
    digest = digest_samples(records, counts, PackTable.of([[0, 2], [1]]))
    assert digest == "07de634bbe998dcd10e28730f2e319421398041b68591918b23770e49e3b9961"


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["/a/b/1.png", "/a/b/2.png"],
        ["/a/bc/1.png", "/a/b/2.png", "/a/b.png"],
        ["/a/b.png", "/a/bc/1.png"],
        ["/x.png", "/a/y.png"],
        ["x.png", "/a/y.png"],
    ],
)
def test_the_shared_folder_is_the_longest_one_above_all_files(paths: list[str]):
    folders = [f"{path.rpartition(os.sep)[0]}{os.sep}" for path in paths]
    prefix = os.path.commonprefix(folders)
    assert _shared_folder(paths) == prefix[: prefix.rfind(os.sep) + 1]

"""Records on disk: equal to those in memory, whatever they hold, and read by every process."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qwenvl.data.annotations import BadSample, Record, Turn
from qwenvl.data.record_table import RecordTable, count_media, select, write_table

TURNS = (
    Turn("system", "Be\u2028brief.\n"),
    Turn("user", "<image>Größe?\r\n\x00 \U0001fac1"),
    Turn("assistant", 'A "b".', thought="R", supervised=False, tool_calls='[{"name": "zoom"}]'),
    Turn("tool", ""),
    Turn("assistant", "half \ud83e of a pair"),
)
RECORDS = [
    Record("t.json", 0, TURNS, ("/a b.png", "/ü.png"), ("/c.mp4",), "row 0", '[{"name": "zoom"}]'),
    Record("t.json", 1, ()),
    Record("u.jsonl", 7, TURNS[1:3], images=("/a.png",)),
]


@pytest.fixture
def table(tmp_path: Path) -> RecordTable:
    """Return the table of the records."""
    write_table(tmp_path, RECORDS)
    return RecordTable(tmp_path)


def test_a_table_has_the_records_that_were_written_with_every_field(table: RecordTable):
    assert [*table] == RECORDS == [table[place] for place in range(3)]
    assert len(table) == 3 and table[-1] == RECORDS[-1]
    assert table[1:] == RECORDS[1:] and table[::-2] == RECORDS[::-2]
    assert isinstance(table[0].turns, tuple) and isinstance(table[0].images, tuple)
    with pytest.raises(IndexError):
        table[3]


def test_a_medium_may_be_a_dataclass_of_the_package(tmp_path: Path):
    records = [Record("t.json", 0, TURNS, videos=(BadSample("t.json", "frames", None, "1 fps"), "/a.mp4"))]
    write_table(tmp_path, records)
    assert [*RecordTable(tmp_path)] == records


def test_what_a_table_cannot_hold_is_an_error_when_it_is_written(tmp_path: Path):
    with pytest.raises(TypeError, match="a record table takes JSON's types and dataclasses"):
        write_table(tmp_path, [Record("t.json", 0, TURNS, videos=({1},))])


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "qwenvl.data.annotations:read_annotations"])
def test_a_table_names_no_other_code_than_the_packages_dataclasses(tmp_path: Path, name: str):
    write_table(tmp_path, RECORDS)
    (tmp_path / "classes.json").write_text(json.dumps([name]))
    with pytest.raises(ValueError, match="a record table names"):
        RecordTable(tmp_path)


def test_media_are_counted_without_reading_a_record(table: RecordTable):
    for records in (table, RECORDS):
        images, videos = count_media(records)
        assert images.tolist() == [2, 0, 1] and videos.tolist() == [1, 0, 0]
    assert [len(counts) for counts in count_media([])] == [0, 0]


def test_a_table_can_be_handed_to_a_worker_and_read_by_several_threads(tmp_path: Path):
    records = [Record("t.json", row, TURNS[1:3] * (row % 5)) for row in range(9000)]
    write_table(tmp_path, records)
    table = pickle.loads(pickle.dumps(RecordTable(tmp_path)))
    places = np.random.default_rng(0).integers(0, len(records), 2000).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(table.__getitem__, places)] == [records[place] for place in places]
    assert [*table] == records


def test_chosen_records_of_a_table_are_those_of_a_list(table: RecordTable, tmp_path: Path):
    places = np.array([2, 0, 0, 1])
    expected = [RECORDS[place] for place in places]
    chosen = select(table, places)
    assert [*chosen] == expected == select(RECORDS, places)
    assert [chosen[place] for place in range(-4, 4)] == expected * 2
    assert chosen[1:3] == expected[1:3] and [*select(chosen, np.array([3, 1]))] == [expected[3], expected[1]]
    assert [counts.tolist() for counts in count_media(chosen)] == [[1, 2, 2, 0], [0, 1, 1, 0]]
    with pytest.raises(IndexError):
        chosen[4]
    write_table(tmp_path / "copy", chosen)
    copy = RecordTable(tmp_path / "copy")
    assert [*copy] == expected and [counts.tolist() for counts in count_media(copy)] == [[1, 2, 2, 0], [0, 1, 1, 0]]

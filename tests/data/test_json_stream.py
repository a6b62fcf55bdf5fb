"""Tests of reading a JSON list item by item."""

import json
import tracemalloc
from pathlib import Path

import pytest

from qwenvl.data import json_stream
from qwenvl.data.json_stream import iter_json_list
from qwenvl.errors import UserError


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_items_are_those_of_json_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    rows = [{"a": 'quote " and \\ and ] ü'}, [1, [2]], 12345, -1.5e3, "x", None, True, {}]
    for indent in (None, 2):
        path = _file(tmp_path, json.dumps(rows, indent=indent))
        assert list(iter_json_list(path)) == list(enumerate(rows))


def test_an_empty_list_has_no_items(tmp_path: Path):
    assert list(iter_json_list(_file(tmp_path, " [ \n] "))) == []


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    path = tmp_path / "big.json"
    with open(path, "w") as stream:
        stream.write("[")
        stream.write(",\n".join(json.dumps({"text": "x" * 1000}) for _ in range(20_000)))
        stream.write("]")
    tracemalloc.start()
    count = sum(1 for _ in iter_json_list(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "not a JSON list"),
        ("", "not a JSON list"),
        ('[{"a": 1}, {"a": 2', "item 1 of the list"),
        ('[{"a": 1} {"a": 2}]', "item 0 of the list"),
        ('[{"a": 1}, ]', "item 1 of the list"),
        ('[{"a": 1}', "item 0 of the list"),
    ],
)
def test_damage_is_named_with_its_item(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        list(iter_json_list(_file(tmp_path, text)))


def test_a_missing_file_and_other_encodings_are_the_users_errors(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read it"):
        list(iter_json_list(tmp_path / "none.json"))
    path = tmp_path / "latin.json"
    path.write_bytes('["ü"]'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        list(iter_json_list(path))

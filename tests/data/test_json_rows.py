"""Tests of telling JSON lists, JSONL and single records apart, and of naming what is malformed."""

import gzip
import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from qwenvl.data import json_items, json_rows
from qwenvl.data.json_rows import OnBadRow, Row, iter_json_rows
from qwenvl.errors import UserError

VALUES = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
PACKS = [[{"text": "one"}], [{"text": "two"}, {"text": "three"}]]
INDENTED = json.dumps(VALUES, indent=2)
LINES = "\n".join(json.dumps(value) for value in VALUES) + "\n"


def read_all(path: str, on_bad_row: OnBadRow) -> list[Row]:
    """Return all rows of a file."""
    return list(iter_json_rows(path, on_bad_row))


def read(folder: Path, content: str | bytes, name: str) -> list[Row]:
    """Write `content` to a file and read its rows; a malformed line fails the test."""
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)
    return read_all(str(folder / name), lambda place, reason: pytest.fail(f"{place}: {reason}"))


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("text", [json.dumps(VALUES), INDENTED, LINES, LINES.replace("\n", "\r\n\n")])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_lists_and_lines_are_told_apart_by_content_not_by_suffix(tmp_path: Path, name: str, text: str, start: str):
    assert [row.value for row in read(tmp_path, start + text, name)] == VALUES


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("text", [json.dumps(PACKS), "\n".join(json.dumps(pack) for pack in PACKS)])
def test_packs_are_read_from_a_list_and_from_lines(tmp_path: Path, name: str, text: str):
    assert [row.value for row in read(tmp_path, text, name)] == PACKS


def test_places_count_rows_from_0_and_lines_from_1_with_the_blank_ones(tmp_path: Path):
    assert [(row.location, row.index) for row in read(tmp_path, json.dumps(VALUES), "t.json")][1] == ("row 1", 1)
    gaps = "\n" + LINES.replace("\n", "\n\n")
    assert [row.location for row in read(tmp_path, gaps, "t.jsonl")] == ["line 2", "line 4", "line 6"]


def test_jsonl_lines_may_hold_unicode_line_separators(tmp_path: Path):
    values = ["a\u2028b\x85c", {"text": "a\u2028b"}]
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert [row.value for row in read(tmp_path, text, "t.jsonl")] == values


@pytest.mark.parametrize(("name", "indent"), [("t.json", None), ("t.json", 2), ("t.jsonl", None)])
def test_one_single_record_is_one_row(tmp_path: Path, name: str, indent: int | None):
    assert [row.value for row in read(tmp_path, json.dumps(VALUES[0], indent=indent), name)] == VALUES[:1]


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        ("", "t.json", "is empty"),
        ("\ufeff \n\n", "t.jsonl", "is empty"),
        ('[{"a": 1},\n {"b" 2}]', "t.json", "malformed JSON at line 2 column 7"),
        ('[{"a": 1}', "t.json", "malformed JSON at line 1 column 10"),
        ('{"a": \n 1,}', "t.json", "malformed JSON at line 2"),
        ("no json", "t.jsonl", "malformed JSON at line 1 column 1"),
        ('"text"', "t.json", "got a JSON str, expected a list of records"),
        (b'[{"text": "caf\xe9"}]', "t.json", "byte 14 is not UTF-8"),
        (
            INDENTED.encode("utf-16"),
            "t.json",
            "byte 0 is not UTF-8 text (it looks like UTF-16); save",
        ),
        ('[{"a": 1},\n]', "t.json", "(remove the trailing comma before it?)"),
        ("[" * 100_000, "t.json", "nested too deeply"),
        ('[{"a": ' + "[" * 5000 + "]" * 5000 + "}]", "t.json", "nested too deeply"),
        (gzip.compress(INDENTED.encode(), mtime=0)[:30], "t.json.gz", "cannot read the annotation file"),
        (b"no gzip", "t.json.gz", "cannot read the annotation file (Not a gzipped file"),
    ],
)
def test_an_unusable_file_is_refused_with_its_path_and_place(
    tmp_path: Path, content: str | bytes, name: str, expected: str
):
    with pytest.raises(UserError) as error:
        read(tmp_path, content, name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_malformed_line_is_reported_and_the_others_are_read(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"a": \n' + LINES + '{"b": [')
    bad = []
    rows = read_all(str(tmp_path / "t.jsonl"), lambda place, reason: bad.append((place, reason.partition(":")[0])))
    assert [row.value for row in rows] == VALUES
    assert bad == [("line 1", "malformed JSON at column 7"), ("line 5", "malformed JSON at column 8")]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such annotation file"):
        read_all(str(tmp_path / "no.json"), print)
    with pytest.raises(UserError, match="cannot read the annotation file"):
        read_all(str(tmp_path), print)


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' occurs twice in one object"),
        ('{"a": [{"b": [{"c": 1, "c": 2}]}]}', "the key 'c' occurs twice in one object"),
        (f'{{"a": [[{LONG}]]}}', "an integer has too many digits"),
        (LONG, "an integer has too many digits"),
    ],
)
def test_a_row_that_would_not_be_read_as_it_is_meant_is_reported_and_the_others_are_read(
    tmp_path: Path, bad: str, expected: str
):
    rows = [json.dumps(VALUES[0]), bad, json.dumps(VALUES[1])]
    (tmp_path / "t.json").write_text(f"[{','.join(rows)}]")
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    reported: list[tuple[str, str]] = []
    for name in ("t.json", "t.jsonl"):
        read = read_all(str(tmp_path / name), lambda *args: reported.append(args))
        assert [(row.index, row.value) for row in read] == [(0, VALUES[0]), (2, VALUES[1])]
    assert [place for place, _ in reported] == ["row 1", "line 2"]
    assert all(expected in reason for _, reason in reported)


def test_a_line_that_is_nested_too_deeply_is_reported(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(LINES + '{"a": ' + "[" * 5000 + "]" * 5000 + "}")
    reported = []
    assert len(read_all(str(tmp_path / "t.jsonl"), lambda *args: reported.append(args))) == 3
    assert reported == [("line 4", "a record is nested too deeply to be read: flatten it, or delete it")]


@pytest.mark.parametrize("name", ["t.json.gz", "t.jsonl.gz"])
@pytest.mark.parametrize("text", [INDENTED, LINES])
def test_compressed_files_are_read(tmp_path: Path, name: str, text: str):
    assert [row.value for row in read(tmp_path, gzip.compress(text.encode()), name)] == VALUES


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.json")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.json"))
        for path, kind in (
            ("/dev/zero", "a device"),
            (tmp_path / "pipe.json", "a pipe"),
            (tmp_path / "s.json", "a socket"),
        ):
            with pytest.raises(UserError, match=f"cannot read the annotation file .it is {kind}"):
                read_all(str(path), print)


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open(tmp_path / "t.json", "wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(UserError, match="t.json: 8,192 GiB are more than this machine's memory"):
        read_all(str(tmp_path / "t.json"), print)
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(bytes(1 << 16)))
    monkeypatch.setattr("qwenvl.data.json_rows.memory_bytes", lambda: 1 << 15)
    with pytest.raises(UserError, match="decompressed, it is larger than this machine's memory"):
        read_all(str(tmp_path / "t.json.gz"), print)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_rows_are_the_same_however_the_file_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
):
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    rows = [{"text": "ü\u2028 😀"}, [{"a": "]"}, {"b": -1.5e3}], {"c": 1, "d": None}]
    (tmp_path / "list.json").write_text("\ufeff\n" + json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(
        "\n\n" + "\r\n".join(json.dumps(value, ensure_ascii=False) for value in rows), encoding="utf-8", newline=""
    )
    for name in ("list.json", "lines.jsonl"):
        assert [row.value for row in read_all(str(tmp_path / name), pytest.fail)] == rows


@pytest.mark.parametrize("text", ["[{}, {},\n {}] []", "[{},\n {}] x", '[{}, {"a": 1, "a": 2}, {"b" 1}]', "[{}, {}"])
def test_a_list_malformed_anywhere_is_refused_before_a_row_of_it_is_reported(tmp_path: Path, text: str):
    (tmp_path / "t.json").write_text(text)
    reported = []
    with pytest.raises(UserError, match="t.json: malformed JSON at line"):
        read_all(str(tmp_path / "t.json"), lambda *flaw: reported.append(flaw))
    assert not reported


def test_an_item_longer_than_what_is_read_at_once_is_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_items, "_LARGEST_ITEM", 10)
    monkeypatch.setattr(json_items.JsonItems.__init__, "__defaults__", (4,))
    rows = [{"a": 1}, {"b": "x" * 100}, {"c": 2}]
    text = json.dumps(rows[:1])[:-1] + ', {"d": 1, "d": 2}, ' + json.dumps(rows[1:])[1:]
    (tmp_path / "t.json").write_text(text)
    reported = []
    read = read_all(str(tmp_path / "t.json"), lambda place, reason: reported.append(place))
    assert [(row.location, row.value) for row in read] == [("row 0", rows[0]), ("row 2", rows[1]), ("row 3", rows[2])]
    assert reported == ["row 1"]


@pytest.mark.parametrize(("name", "start"), [("t.jsonl", ""), ("t.jsonl.gz", ""), ("t.json", "[")])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, start: str):
    separator = "," if start else "\n"
    text = start + separator.join(json.dumps({"text": f"{number} " * 200}) for number in range(20_000))
    data = (text + ("]" if start else "")).encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    tracemalloc.start()
    assert sum(1 for _ in iter_json_rows(str(tmp_path / name), pytest.fail)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20 < len(data)


def test_whole_numbers_of_any_length_and_other_values_beyond_standard_json_are_read_as_json_does(tmp_path: Path):
    (row,) = read(tmp_path, '[{"big": 123456789012345678901234567890, "nan": NaN}]', "t.json")
    assert row.value["big"] == 123456789012345678901234567890 and row.value["nan"] != row.value["nan"]

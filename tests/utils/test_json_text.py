"""Tests of reading JSON files with errors of one line, and of writing JSON."""

import io
import json
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.utils.json_text import JsonListWriter, encoded_json, parse_json, read_json, write_json


def test_a_file_is_read_as_it_was_written(tmp_path: Path):
    value = {"a": [1, None, "ä"]}
    with (tmp_path / "a.json").open("w", encoding="utf-8") as stream:
        write_json(stream, value)
    assert read_json(tmp_path / "a.json") == read_json(str(tmp_path / "a.json")) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON (Expecting property name"),
        (b"", "not valid JSON (Expecting value"),
        (b'{"a": "\xff"}', "not valid JSON (not UTF-8: invalid start byte)"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b"[]", "holds a list, expected a JSON object"),
        (b"true", "holds a boolean, expected a JSON object"),
        (b"null", "holds null, expected a JSON object"),
    ],
    ids=["cut", "empty", "not UTF-8", "nested", "list", "boolean", "null"],
)
def test_what_is_no_json_object_is_an_error_of_one_line_with_the_remedy(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path, remedy="copy it again")
    text = str(error.value)
    assert text.startswith(f"{path}: {message}") and text.endswith("; copy it again") and "\n" not in text


def test_an_absent_file_and_a_folder_are_errors_under_the_given_name(tmp_path: Path):
    with pytest.raises(UserError, match="^--settings a.json: no such file; restore the file$"):
        read_json(tmp_path / "a.json", name="--settings a.json")
    with pytest.raises(UserError, match="cannot read the file .Is a directory.; restore"):
        read_json(tmp_path)


def test_another_top_level_can_be_expected(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", expected=list) == [1]
    assert parse_json("3", expected=object, name="x", remedy="y") == 3
    with pytest.raises(UserError, match="^x: holds an object, expected a JSON list; y$"):
        parse_json("{}", expected=list, name="x", remedy="y")


def test_what_is_no_utf8_or_has_no_form_in_json_is_encoded_all_the_same():
    assert json.loads(encoded_json({"a": "\udc80", "b": b"\x01", "c": Path("d")})) == {
        "a": "\udc80",
        "b": "AQ==",
        "c": "d",
    }
    assert encoded_json("ä") == '"ä"' and "\\udc80" in encoded_json("\udc80")


@pytest.mark.parametrize("records", [[], [1], [1, {"a": "b"}]])
def test_a_list_is_written_record_by_record(records: list):
    stream = io.StringIO()
    writer = JsonListWriter(stream)
    for record in records:
        writer.write(json.dumps(record))
    writer.close()
    assert json.loads(stream.getvalue()) == records and writer.count == len(records)
    assert len(stream.getvalue().splitlines()) == (len(records) + 2 if records else 1)

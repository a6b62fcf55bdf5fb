"""Tests of reading the original rows of an annotation file and of copying them."""

import gzip
import io
import json
from pathlib import Path

import pytest

from qwenvl.check.raw_rows import iter_items, iter_rows, rebase_row, write_valid_rows
from qwenvl.data.json_rows import Row
from qwenvl.data.rows import stream_rows
from qwenvl.tools.check_data import main
from tests.check.conftest import answers_and_bytes, make_record, row, valid_rows, write


def test_jsonl_keeps_its_line_numbers_and_malformed_lines_are_reported(check, images: Path):
    lines = images / "train.jsonl"
    lines.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(valid_rows()[0]).encode() + b"\n\n{broken\n" + json.dumps(valid_rows()[1]).encode()
    )
    outcome = check(lines)
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("line 3", "record")]
    assert outcome.clean() == valid_rows(2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", '\n [{"a": 1},\n [{"b": "\u2028"}, 3], 4]'),
        ("one.json", '{\n"a": 1}'),
        ("lines.jsonl", '\ufeff{"a": "\u2028"}\n\n[{"b": 2}, {"c": 3}]\r\n{broken\n{"d": 4}'),
    ],
)
def test_rows_read_one_by_one_are_those_that_training_reads(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    expected = stream_rows(str(path), lambda place, reason: None)
    assert list(iter_rows(str(path))) == list(expected)


def test_half_a_surrogate_pair_in_a_key_that_training_ignores_is_kept(check, images: Path):
    rows = [row("image0.png", "It is.", note="\ud83d")]
    assert check(write(images / "train.json", rows)).clean() == rows


def test_frames_of_videos_are_found_from_where_the_clean_file_is_written(check, images: Path):
    pair = ["image0.png", "image1.png"]
    (images / "clip").mkdir()
    for name in pair:
        (images / "clip" / name).write_bytes((images / name).read_bytes())
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "It "}]
    videos = [pair, [["clip/image0.png", "clip/image1.png"], pair], "clip", {"frames": pair, "fps": 4}]
    rows = []
    for number, video in enumerate(videos):
        marks = "<video>" * (2 if number == 1 else 1)
        marked_turns = [turns[0] | {"value": f"{marks}What?"}, turns[1] | {"value": f"It is {number}."}]
        rows.append({"video" if number != 1 else "videos": video, "fps": 2, "conversations": marked_turns})
    outcome = check(write(images / "train.json", rows), out="out")
    assert (outcome.code, outcome.value("records in clean.json")) == (0, "4")
    clean = outcome.out / "clean.json"
    assert check(clean, out="again").code == 0


def test_the_items_of_a_pack_have_locations_of_their_own():
    assert list(iter_items(Row("row 4", 4, {"a": 1}))) == [("row 4", {"a": 1})]
    assert list(iter_items(Row("row 4", 4, [1, 2]))) == [("row 4 item 0", 1), ("row 4 item 1", 2)]


@pytest.mark.parametrize(
    ("folder", "path"),
    [("data", "x/a.png"), (".", "data/x/a.png"), ("data/x", "a.png"), ("out", "{data}/x/a.png")],
)
def test_relative_media_are_named_as_seen_from_another_folder(tmp_path: Path, folder: str, path: str):
    data = tmp_path / "data"
    record = make_record(0, "Q", "A", images=(str(data / "x" / "a.png"),))
    given = {"image": ["x/a.png", "/abs/b.png"], "text": "x/a.png", "nested": {"path": "x/a.png"}}
    expected = path.format(data=data)
    assert rebase_row(given, record, [str(data)], str(tmp_path / folder)) == {
        "image": [expected, "/abs/b.png"], "text": "x/a.png", "nested": {"path": expected}
    }  # fmt: skip


def test_only_valid_records_are_written_and_packs_stay_packs(tmp_path: Path):
    rows = [Row("row 0", 0, {"n": 0}), Row("row 1", 1, [{"n": 1}, {"n": 2}]), Row("row 2", 2, [{"n": 3}])]
    valid = {location: make_record(0, "Q", "A") for location in ("row 0", "row 1 item 1")}
    stream = io.StringIO()
    assert write_valid_rows(stream, iter(rows), valid, [str(tmp_path)], str(tmp_path)) == 2
    assert json.loads(stream.getvalue()) == [{"n": 0}, [{"n": 2}]]


def test_the_clean_copy_of_a_table_is_json_that_holds_its_images(table: Path, flags: list[str], tmp_path: Path):
    assert main([*flags, "--dataset_use", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    written = answers_and_bytes(tmp_path / "out/clean.json", tmp_path / "other")
    assert written == answers_and_bytes(table, tmp_path / "cache") and len(written) == 4


@pytest.mark.parametrize("by_line", [True, False])
def test_a_compressed_file_with_an_unusable_row_is_copied_without_it(flags: list[str], tmp_path: Path, by_line: bool):
    rows = [json.dumps({"query": f"{number}?", "response": "yes"}) for number in range(3)]
    rows.insert(1, '{"query": "twice?", "response": "a", "response": "b"}')
    rows.insert(2, '{"query": "long?", "response": "a", "id": ' + "9" * 5000 + "}")
    for name, pack in (("t.json.gz", gzip.compress), ("t.json", bytes)):
        text = "\n".join(rows) if by_line else f"[{','.join(rows)}]"
        (tmp_path / name).write_bytes(pack(text.encode()))
        out = tmp_path / f"out {name}"
        assert main([*flags, "--dataset_use", str(tmp_path / name), "--out", str(out), "--workers", "1"]) == 1
        assert [row["query"] for row in json.loads((out / "clean.json").read_text())] == ["0?", "1?", "2?"]
        assert len((out / "problems.jsonl").read_text().splitlines()) == 2

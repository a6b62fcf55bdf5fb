"""Tests of reading an annotation file a second time and of copying its rows."""

import json
from pathlib import Path

import pytest

from qwenvl.check.raw_rows import iter_rows
from qwenvl.data.rows import stream_rows
from tests.check.conftest import row, sound_rows, write


def test_jsonl_keeps_its_line_numbers_and_malformed_lines_are_told(check, films: Path):
    lines = films / "train.jsonl"
    lines.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(sound_rows()[0]).encode() + b"\n\n{broken\n" + json.dumps(sound_rows()[1]).encode()
    )
    outcome = check(lines)
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("line 3", "record")]
    assert outcome.clean() == sound_rows(2)


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


def test_half_a_surrogate_pair_in_a_key_that_training_ignores_is_kept(check, films: Path):
    rows = [row("film0.png", "It is.", note="\ud83d")]
    assert check(write(films / "train.json", rows)).clean() == rows


def test_frames_of_videos_are_found_from_where_the_clean_file_is_written(check, films: Path):
    pair = ["film0.png", "film1.png"]
    (films / "clip").mkdir()
    for name in pair:
        (films / "clip" / name).write_bytes((films / name).read_bytes())
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "It "}]
    videos = [pair, [["clip/film0.png", "clip/film1.png"], pair], "clip", {"frames": pair, "fps": 4}]
    rows = []
    for number, video in enumerate(videos):
        marks = "<video>" * (2 if number == 1 else 1)
        said = [turns[0] | {"value": f"{marks}What?"}, turns[1] | {"value": f"It is {number}."}]
        rows.append({"video" if number != 1 else "videos": video, "fps": 2, "conversations": said})
    outcome = check(write(films / "train.json", rows), out="out")
    assert (outcome.code, outcome.told("records in clean.json")) == (0, "4")
    clean = outcome.out / "clean.json"
    assert check(clean, out="again").code == 0

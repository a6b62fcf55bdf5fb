"""Tests of the synthetic X-rays and reports: their sizes, and that they are the same every time."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.bench.synthetic_xrays import draw_reports, write_records, write_xrays


def test_xrays_are_the_same_every_time_and_as_large_as_asked(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        names = write_xrays(folder, 102, 96)
        contents.append([(folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert contents[0][0] == contents[0][100] != contents[0][1]
    sizes = [Image.open(folder / name).size for name in names[:20]]
    assert all(max(size) == 96 and 0.74 * 96 < min(size) <= 96 for size in sizes)
    assert {size[0] == 96 for size in sizes} == {True, False}


def test_each_xray_gets_a_record_with_a_report(tmp_path: Path) -> None:
    write_records(tmp_path / "train.json", ["a.jpg", "b.jpg"], words=20)
    records = json.loads((tmp_path / "train.json").read_text())
    assert [record["image"] for record in records] == ["a.jpg", "b.jpg"]
    for record, report in zip(records, draw_reports(2, 20), strict=True):
        question, answer = record["conversations"]
        assert question["from"] == "human" and question["value"].startswith("<image>\n")
        assert answer == {"from": "gpt", "value": report}


@pytest.mark.parametrize("words", [8, 100])
def test_reports_have_the_number_of_words_on_average(words: int) -> None:
    counts = [len(report.split()) for report in draw_reports(200, words)]
    assert min(counts) >= 5 and len({*counts}) > 1
    assert sum(counts) / len(counts) == pytest.approx(words, rel=0.1)

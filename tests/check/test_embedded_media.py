"""The tools that read an annotation file a second time, on tables and compressed files with images inside."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.tools.check_data import main as check_data
from qwenvl.tools.pack_data import main as pack_data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a parquet file of 4 records, each with the bytes of an image of its own."""
    images = []
    for number in range(4):
        Image.new("L", (96, 64), 40 * number).save(tmp_path / "x.png")
        images.append({"bytes": (tmp_path / "x.png").read_bytes(), "path": None})
    rows = {"image": images, "query": ["Which?"] * 4, "response": list("abcd")}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.fixture
def flags(standin: Path, tmp_path: Path) -> list[str]:
    """Return the flags that both tools need."""
    shared = ["--model_name_or_path", standin, "--model_max_length", 300, "--media_cache_dir", tmp_path / "cache"]
    return [str(flag) for flag in shared]


def answers_and_bytes(path: Path, cache: Path) -> list[tuple[str, bytes]]:
    """Return what the records of a written file say and show."""
    records = read_annotations(str(path), str(path.parent), BadSampleTracker(), str(cache)).records
    return sorted((record.turns[1].text, Path(record.images[0]).read_bytes()) for record in records)


def test_the_clean_copy_of_a_table_is_json_that_holds_its_images(table: Path, flags: list[str], tmp_path: Path):
    assert check_data([*flags, "--dataset_use", str(table), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    written = answers_and_bytes(tmp_path / "out/clean.json", tmp_path / "other")
    assert written == answers_and_bytes(table, tmp_path / "cache") and len(written) == 4


def test_a_table_is_packed_into_json_that_holds_its_images(table: Path, flags: list[str], tmp_path: Path):
    assert pack_data([*flags, "--dataset_use", str(table), "--out", str(tmp_path / "packed.json")]) == 0
    written = answers_and_bytes(tmp_path / "packed.json", tmp_path / "other")
    assert written == answers_and_bytes(table, tmp_path / "cache")


@pytest.mark.parametrize("by_line", [True, False])
def test_a_compressed_file_with_an_unusable_row_is_copied_without_it(flags: list[str], tmp_path: Path, by_line: bool):
    rows = [json.dumps({"query": f"{number}?", "response": "yes"}) for number in range(3)]
    rows.insert(1, '{"query": "twice?", "response": "a", "response": "b"}')
    rows.insert(2, '{"query": "long?", "response": "a", "id": ' + "9" * 5000 + "}")
    for name, pack in (("t.json.gz", gzip.compress), ("t.json", bytes)):
        text = "\n".join(rows) if by_line else f"[{','.join(rows)}]"
        (tmp_path / name).write_bytes(pack(text.encode()))
        out = tmp_path / f"out {name}"
        assert check_data([*flags, "--dataset_use", str(tmp_path / name), "--out", str(out), "--workers", "1"]) == 1
        assert [row["query"] for row in json.loads((out / "clean.json").read_text())] == ["0?", "1?", "2?"]
        assert len((out / "problems.jsonl").read_text().splitlines()) == 2

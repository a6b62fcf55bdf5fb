"""Fixtures of the pre-flight check: a folder of images, and a function that checks an annotation file."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from PIL import Image

from qwenvl.data.annotations import BadSampleTracker, Record, read_annotations
from qwenvl.data.records import Turn
from qwenvl.tools.check_data import main


class Outcome(NamedTuple):
    """What one check returned, wrote and printed."""

    code: int
    problems: list[dict[str, Any]]
    out: Path
    text: str

    def clean(self, name: str = "clean.json") -> Any:
        """Return the rows of a clean file, with media paths reduced to file names once the files are found."""
        text = (self.out / name).read_text(encoding="utf-8")
        return json.loads(text, object_hook=self._with_names)

    def _with_names(self, value: dict[str, Any]) -> dict[str, Any]:
        for kind in ("image", "video"):
            paths = value.get(kind, [])
            for path in [paths] if isinstance(paths, str) else paths:
                assert (self.out / path).is_file()
            if paths:
                names = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
                value[kind] = names[0] if isinstance(paths, str) else names
        return value

    def value(self, name: str) -> str:
        """Return the value of the row `name` of a printed table."""
        found = re.search(rf"^ *{re.escape(name)}  +(.*)$", self.text, re.MULTILINE)
        assert found, f"no row {name!r} in:\n{self.text}"
        return found[1].strip()


def row(image: str | list[str] | None, answer: str, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    """Return a record about images; `more` are keys that training does not read."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return more | ({} if image is None else {"image": image}) | {"conversations": turns}


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of eight different images, image0.png to image7.png, 96 wide and 64 high."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.new("L", (96, 64), number * 20).save(folder / f"image{number}.png")
    return folder


@pytest.fixture
def check(standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Return a function that checks an annotation file with these flags."""

    def run(dataset: Path | str, *flags: object, out: str = "out") -> Outcome:
        required = ["--model_name_or_path", standin, "--dataset_use", dataset, "--out", tmp_path / out]
        required += ["--model_max_length", 512, "--media_cache_dir", tmp_path, "--workers", 1]
        code = main([str(word) for word in (*required, *flags)])
        lines = (tmp_path / out / "problems.jsonl").read_text(encoding="utf-8").splitlines()
        return Outcome(code, [json.loads(line) for line in lines], tmp_path / out, capsys.readouterr().out)

    return run


def valid_rows(count: int = 8) -> list[dict[str, Any]]:
    return [row(f"image{number}.png", f"It is image {number}.", id=number) for number in range(count)]


def make_record(row: int, question: str, answer: str, source: str = "train.json", **media: Any) -> Record:
    """Return a checked record as it is read from a file; `media` are its images and videos."""
    turns = (Turn("user", question), Turn("assistant", answer))
    return Record(source, row, turns, location=f"row {row}", **media)


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
    """Return the flags that check_data and pack_data need."""
    shared = ["--model_name_or_path", standin, "--model_max_length", 300, "--media_cache_dir", tmp_path / "cache"]
    return [str(flag) for flag in shared]


def answers_and_bytes(path: Path, cache: Path) -> list[tuple[str, bytes]]:
    """Return the answer and the image of each record of a written file."""
    records = read_annotations(str(path), str(path.parent), BadSampleTracker(), str(cache)).records
    return sorted((record.turns[1].text, Path(record.images[0]).read_bytes()) for record in records)

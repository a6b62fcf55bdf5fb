"""Tests of the data benchmark at a small size."""

from pathlib import Path

import pytest
from PIL import Image

from qwenvl.bench.synthetic_xrays import write_xrays
from qwenvl.tools.bench_data import main


def test_the_benchmark_prints_its_command_machine_versions_and_numbers(standin: Path, capsys: pytest.CaptureFixture):
    flags = ["--model_name_or_path", str(standin), "--records", "150", "--films", "6", "--sides", "64"]
    flags += ["--words", "20", "--workers", "1", "--model_max_length", "2048"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    for told in ("command: python tools/bench_data.py", "machine:", "versions:", "one core", "all but the first scan"):
        assert told in output


def test_made_up_films_are_the_same_every_time_and_as_large_as_asked(tmp_path: Path):
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        names = write_xrays(folder, 102, 96)
        contents.append([(folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert contents[0][0] == contents[0][100] != contents[0][1]
    assert max(Image.open(folder / names[0]).size) == 96

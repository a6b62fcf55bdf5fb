"""The data benchmark: it runs at a small size and says what was measured where."""

import re
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.bench.synthetic_xrays import write_films
from qwenvl.tools.bench_data import main


def test_the_benchmark_prints_its_command_machine_versions_and_numbers(standin: Path, capsys: pytest.CaptureFixture):
    flags = ["--model_name_or_path", str(standin), "--records", "150", "--films", "6", "--sides", "64"]
    flags += ["--words", "20", "--workers", "1", "--model_max_length", "2048"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    for told in ("command: python tools/bench_data.py", "machine:", "versions:", "one core", "all but the first scan"):
        assert told in output
    for told in ("64 pixels, whole and as float32, 1 workers", "64 pixels, as in training, 1 workers"):
        assert told in output
    assert re.search(r"64 pixels, difference of the two +0.00 of 255 levels on average, at most 0\n", output)


def test_made_up_films_are_the_same_every_time_and_as_large_as_asked(tmp_path: Path):
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        names = write_films(folder, 102, 96)
        contents.append([(folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1]
    assert contents[0][0] == contents[0][100] != contents[0][1]
    assert max(Image.open(folder / names[0]).size) == 96

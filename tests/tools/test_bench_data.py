"""Tests of the command of the data benchmark at a small size."""

import re
from pathlib import Path

import pytest

from qwenvl.tools.bench_data import main


def test_the_benchmark_prints_its_command_machine_versions_and_numbers(standin: Path, capsys: pytest.CaptureFixture):
    flags = ["--model_name_or_path", str(standin), "--records", "150", "--films", "6", "--sides", "64"]
    flags += ["--words", "20", "--workers", "1", "--model_max_length", "2048"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    for text in ("command: python tools/bench_data.py", "machine:", "versions:", "one core", "all but the first scan"):
        assert text in output
    for text in ("64 pixels, whole and as float32, 1 workers", "64 pixels, as in training, 1 workers"):
        assert text in output
    assert re.search(r"64 pixels, difference of the two +0.00 of 255 levels on average, at most 0\n", output)


def test_only_the_starts_are_measured_if_asked(
    standin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    given = []
    monkeypatch.setattr(
        "qwenvl.bench.starts.bench_starts", lambda *arguments: given.append(arguments) or [("first start", "1.0 s")]
    )
    assert main(["--model_name_or_path", str(standin), "--starts", "2000", "--distinct", "--words", "30"]) == 0
    assert given[0][:5] == (str(standin), 2000, 30, 8192, True)
    output = capsys.readouterr().out
    assert "Starting on 2,000 records\n  first start  1.0 s" in output and "From files to samples" not in output

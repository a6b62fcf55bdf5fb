"""Tests of the benchmark of starts: both starts have the same samples."""

from pathlib import Path

import pytest

from qwenvl.bench.starts import measure_start, write_dataset
from qwenvl.data import data_processor


def test_a_second_start_has_the_samples_of_the_first_without_reading_them(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data_processor, "WORTH_BYTES", 0)
    path = write_dataset(tmp_path, 40, 20, distinct=True)
    assert len([*tmp_path.glob("xray*")]) == 40
    first = measure_start(str(path), str(standin), 2048, str(tmp_path / "cache"))
    monkeypatch.setattr(data_processor, "load_datasets", None)
    second = measure_start(str(path), str(standin), 2048, str(tmp_path / "cache"))
    assert first.num_samples == 40 and first.digest == second.digest
    assert min(first.peak, first.before, first.worker, second.worker) > 0

"""Tests of the measurements of the data benchmark."""

from argparse import Namespace
from pathlib import Path

from transformers import ProcessorMixin

from qwenvl.bench import data
from qwenvl.bench.data import Stopwatch, bench_loading, bench_planning, find_model
from qwenvl.data.encoding import RecordEncoder


def test_a_stopwatch_keeps_the_seconds_of_each_step_and_returns_its_result(monkeypatch) -> None:
    clock = iter([1.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    assert watch.time("sum", sum, [1, 2]) == 3
    assert watch.time("longest", max, 4, 5) == 5
    assert watch.seconds == {"sum": 2.5, "longest": 0.25}


def test_planning_reports_each_step_and_packs_that_hold_all_tokens(processor: ProcessorMixin, tmp_path: Path) -> None:
    options = Namespace(records=20, words=10, model_max_length=1024)
    rows = dict(bench_planning(RecordEncoder(processor), options, tmp_path))
    assert {"scan the headers, first run", "scan the headers, cached", "count the tokens", "plan the packs"} <= set(
        rows
    )
    packs, mean = int(rows["packs of 1024"]), int(rows["tokens per record, mean"])
    assert packs >= 20 * mean / 1024 - 1
    assert float(rows["fill of the packs"].rstrip("%")) <= 100


def test_loading_is_measured_in_one_process_and_in_workers(processor: ProcessorMixin, tmp_path: Path) -> None:
    options = Namespace(num_images=4, words=5, workers=1, max_pixels=4096, model_max_length=1024)
    rows = dict(bench_loading(processor, options, tmp_path, 64))
    for how in ("whole and as float32", "as in training"):
        assert float(rows[f"64 pixels, {how}, one core"].removesuffix(" /s")) > 0
        assert float(rows[f"64 pixels, {how}, 1 workers"].partition(" /s")[0]) > 0


def test_a_given_model_is_used_and_otherwise_a_stand_in_is_built(tmp_path: Path) -> None:
    assert find_model("some/model", tmp_path / "new") == "some/model" and not (tmp_path / "new").exists()
    assert (Path(find_model(None, tmp_path / "new")) / "config.json").is_file()

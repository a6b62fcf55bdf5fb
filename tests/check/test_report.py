"""Tests of the report: batches, steps and memory are those of the run, and the histogram shows the lengths."""

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.check.report import ProblemList, draw_histogram, histogram_edges, length_rows
from qwenvl.data.annotations import BadSample
from qwenvl.train.train_qwen import train
from tests.check.conftest import make_record, row, valid_rows, write

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("lengths", [[7], [5, 5, 6], list(range(100, 400)), [1, 100_000]])
def test_the_bins_cover_the_data_and_hold_whole_numbers_of_tokens(lengths: list[int]) -> None:
    edges = histogram_edges(np.array(lengths))

    assert edges[0] < min(lengths) and max(lengths) < edges[-1]
    widths = np.diff(edges)
    assert set(widths.tolist()) == {round(widths[0])} and len(widths) <= 80
    counts, _ = np.histogram(lengths, bins=edges)
    assert counts.sum() == len(lengths)


def test_a_distant_limit_does_not_press_the_records_to_the_edge() -> None:
    def bar_columns(limit: int) -> int:
        image = np.asarray(Image.open(io.BytesIO(draw_histogram(np.arange(100, 200), limit))).convert("RGB")).astype(
            int
        )
        blue = (image[..., 2] - image[..., 0]) > 60
        return int(blue.any(0).sum())

    assert bar_columns(1_000_000) > 0.9 * bar_columns(150) > 100


def test_without_matplotlib_all_but_the_histogram_is_there(check, images: Path, monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "matplotlib" and found(name, *rest))
    outcome = check(write(images / "train.json", valid_rows()))
    assert "no token_lengths.png: matplotlib is not installed" in outcome.text
    assert sorted(path.name for path in outcome.out.iterdir()) == ["clean.json", "problems.jsonl"]


RUN = {
    "tune_mm_llm": True,
    "tune_mm_mlp": True,
    "lora_enable": True,
    "lora_r": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize("mode", [{}, {"data_flatten": True}, {"data_packing": True}], ids=str)
def test_batches_steps_and_memory_are_those_that_a_dry_run_reports(
    check, standin: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: dict
):
    rows = [row(f"image{number}.png", "word " * (3 + number * 9)) for number in range(8)]
    dataset = write(images / "train.json", rows)
    flags = [word for name, value in (RUN | mode).items() for word in (f"--{name}", str(value))]
    outcome = check(dataset, *flags)
    required = ["--model_name_or_path", standin, "--dataset_use", dataset, "--output_dir", tmp_path / "run"]
    required += ["--model_max_length", 512, "--media_cache_dir", tmp_path, "--use_cpu", "True", "--report_to", "none"]
    with caplog.at_level("INFO", "qwenvl.train.plan"):
        train([*map(str, required), *flags, "--dry_run", "True"])
    plan = {name.strip(): value for name, value in re.findall(r"^(\S[^\n]*?)  +(\S+)$", caplog.text, re.MULTILINE)}
    name = "packed" if "data_packing" in mode else "flattened" if mode else "padded"
    batches = outcome.value(f"{name} *").split()
    assert (batches[0], batches[3], batches[4]) == (
        plan["padding"],
        plan["batches per epoch and process"],
        plan["steps per epoch"],
    )
    assert outcome.value("tokens") == plan["tokens"]
    assert outcome.value("supervised tokens").split()[0] == plan["supervised tokens"]
    assert outcome.value("total") == plan["total"]


def test_more_processes_and_zero_take_fewer_steps_and_less_memory(check, images: Path):
    dataset = write(images / "train.json", valid_rows())
    whole = ["--tune_mm_llm", "True", "--bf16", "True"]
    one = check(dataset, *whole)
    four = check(dataset, *whole, "--processes", "4", "--deepspeed", REPOSITORY / "scripts/zero3.json", out="four")
    assert one.value("padded *").split()[-1] == "1"
    for less, more in zip(four.value("total").split(), one.value("total").split(), strict=True):
        assert float(less) <= float(more)


def test_what_the_limit_drops_is_reported(check, images: Path):
    rows = [*valid_rows(), row("image0.png", "word " * 600), row("image1.png", "word " * 700)]
    outcome = check(write(images / "train.json", rows))
    assert outcome.value("records over --model_max_length 512") == "2"
    assert int(outcome.value("tokens of a record, most").replace(",", "")) > 700
    assert outcome.value("records") == "8"


def test_problems_are_counted_once_and_sorted_by_their_location():
    problems = ProblemList()
    late, early = BadSample("b.json", "row 10", None, "late"), BadSample("b.json", "row 9", "x.png", "early")
    problems.add("file", [late, early, late])
    problems.add("length", [BadSample("a.json", "row 3 item 1", None, "long")])
    assert len(problems) == 3
    assert [(row["file"], row["row"], row["check"], row["path"]) for row in problems.rows()] == [
        ("a.json", "row 3 item 1", "length", None),
        ("b.json", "row 9", "file", "x.png"),
        ("b.json", "row 10", "file", None),
    ]
    assert problems.by_check() == [("file", 2), ("length", 1)]


def test_records_without_a_problem_are_valid():
    problems, records = ProblemList(), [make_record(row, "Q", "A") for row in range(3)]
    problems.add("turns", [BadSample("train.json", "row 1", None, "swapped")])
    assert problems.valid(records) == [records[0], records[2]]
    assert [problems.is_valid(record) for record in records] == [True, False, True]


def test_lengths_are_described_by_percentiles_and_the_limit():
    rows = dict(length_rows(np.arange(1, 102), 90))
    assert rows == {
        "tokens of a record, 50 % have at most": 51,
        "tokens of a record, 95 % have at most": 96,
        "tokens of a record, 99 % have at most": 100,
        "tokens of a record, most": 101,
        "records over --model_max_length 90": 11,
        "tokens of these": sum(range(91, 102)),
    }

"""Tests of the written results: the table, and that a later call goes on with the results of an earlier one."""

import dataclasses
from pathlib import Path

import pytest

from qwenvl.bench.machine import Machine
from qwenvl.bench.report import format_markdown, read_results, write_json
from qwenvl.bench.results import Result
from qwenvl.bench.rows import Aim
from qwenvl.errors import UserError

MACHINE = Machine("H200", 1, 139.8, "580.159", 795.0, {"torch": "2.11.0"})
RESULTS = [
    Result(
        "bf16",
        "4B, bf16",
        dataclasses.asdict(Aim(samples_per_second=52, peak_gib=24)),
        1,
        command=["python", "train.py", "--output_dir", "a b"],
        samples_per_second=41.23,
        tokens_per_second=21600.4,
        tokens_per_sample=537.2,
        matmul_share=0.513,
        gpu_idle_share=0.149,
        data_wait_share=0.012,
        peak_gib=68.4,
        estimated_gib=70.0,
        seconds_to_first_step=38.7,
        losses={1: 9.5},
        met={"samples_per_second": False, "peak_gib": True},
    ),
    Result("ddp", "two GPUs", {}, 2, status="skipped", problem="needs 2 GPUs, 1 here"),
]


def test_the_table_has_a_row_for_each_measured_recipe_and_a_line_for_each_other() -> None:
    lines = format_markdown(MACHINE, RESULTS).splitlines()
    assert lines[0] == "1 x H200 (140 GiB each), driver 580.159; 795 TFLOP/s measured; torch 2.11.0"
    cells = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert cells == [
        *("4B, bf16", "41.2", "21,600", "51%", "14.9%", "1.2%", "68.4", "70.0", "39 s"),
        *("52 samples/s, 24 GiB", "no"),
    ]
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert "Measured tokens per sample: bf16 537." in lines
    assert "- two GPUs: skipped: needs 2 GPUs, 1 here" in lines
    assert "python train.py --output_dir 'a b'" in lines


def test_results_are_read_back_on_the_same_machine_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert read_results(path, MACHINE) == []
    write_json(path, MACHINE, RESULTS)
    assert read_results(path, dataclasses.replace(MACHINE, matmul_tflops=790.0)) == RESULTS
    assert read_results(path, dataclasses.replace(MACHINE, device="H100")) == []
    assert read_results(path, dataclasses.replace(MACHINE, versions={"torch": "2.12.0"})) == []


@pytest.mark.parametrize("content", ["not JSON", '{"steps": 4}', '{"machine": {}, "rows": [{"x": 1}]}'])
def test_another_file_is_not_overwritten(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no results of this suite"):
        read_results(path, MACHINE)

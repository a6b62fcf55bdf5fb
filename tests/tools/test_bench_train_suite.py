"""Tests of the suite as a command, with small models: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.bench_train import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a suite that has run a preset, a row that fails on a CPU, and one for two GPUs."""
    folder = tmp_path_factory.mktemp("suite")
    command = ["--suite", "--shapes", "standin", "--rows", "preset,fp8,ddp", "--minutes", "0.01", "--no_profile"]
    files = ["--folder", str(folder), "--out", str(folder / "results.json"), "--markdown", str(folder / "results.md")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert main([*command, *files]) == 1  # a row has failed
    return folder


def test_the_json_file_has_the_machine_and_each_row(folder: Path) -> None:
    content = json.loads((folder / "results.json").read_text())
    assert content["machine"]["matmul_tflops"] > 0 and "transformers" in content["machine"]["versions"]
    preset, fp8, ddp = content["rows"]
    assert (preset["status"], fp8["status"], ddp["status"]) == ("measured", "failed", "skipped")
    measured = ("samples_per_second", "tokens_per_second", "matmul_share", "peak_gib", "estimated_gib")
    assert all(preset[name] > 0 for name in (*measured, "seconds_to_first_step", "timed_seconds"))
    assert preset["tokens_per_second"] == pytest.approx(preset["samples_per_second"] * preset["tokens_per_sample"])
    assert preset["met"].keys() == {"samples_per_second"} and preset["gpu_idle_share"] is None
    assert preset["command"][3] == "bash" and "--lora_enable" in preset["program"]
    assert "frozen_weights" in fp8["problem"] or "fp8" in fp8["problem"].lower()
    assert ddp["problem"] == "needs 2 GPUs, 0 here"


def test_the_markdown_file_has_the_table_and_the_commands(folder: Path) -> None:
    text = (folder / "results.md").read_text()
    assert "| 4B, `bash scripts/sft_mimic_4b.sh`, second minute on | " in text
    assert "two GPUs, DistributedDataParallel: skipped: needs 2 GPUs, 0 here" in text
    assert "bash " in text and "TFLOP/s measured" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "--side", "5"], "leave out --side"),
        (["--suite", "--lora_r", "8"], "leave out --lora_r"),
        (["--rows", "bf16"], "--rows belongs to --suite"),
        (["--suite", "--minutes", "0"], "expected more than 0"),
        (["--suite", "--rows", "bf17"], "--rows bf17 is unknown"),
    ],
)
def test_options_without_effect_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(flags)

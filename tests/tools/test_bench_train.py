"""Tests of the training benchmark: it measures the training command, and compares a reloaded model."""

import json
from pathlib import Path

import pytest

from qwenvl.bench import train
from qwenvl.errors import UserError
from qwenvl.tools.bench_train import main


def flags_for(model: Path, *more: str) -> list[str]:
    """Return the flags of a short run with packs, LoRA and a trained merger."""
    flags = ["--films", "12", "--side", "64", "--words", "8", "--warmup", "1", "--model_name_or_path", str(model)]
    flags += ["--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--lora_enable", "True", "--data_packing", "True"]
    flags += ["--model_max_length", "256", "--per_device_train_batch_size", "1", "--learning_rate", "1e-2"]
    return [*flags, "--mm_projector_lr", "1e-2", "--max_steps", "4", "--bf16", "False", "--disable_tqdm", "True", *more]


def test_the_benchmark_prints_and_writes_what_it_measured(
    standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "result.json"
    assert main(flags_for(standin, "--reload", "--out", str(out))) == 0
    printed, result = capsys.readouterr().out, json.loads(out.read_text())
    for text in ("command: python tools/bench_train.py --films 12", "machine:", "samples_per_second"):
        assert text in printed
    assert result["steps"] == len(result["losses"]) == 4
    assert result["samples_per_second"] > 0
    assert result["largest_logit"] > 0
    assert result["largest_difference_after_reload"] < 1e-4


def test_a_checkpoint_that_lost_what_was_trained_is_seen(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = train.load_checkpoint
    monkeypatch.setattr(train, "load_checkpoint", lambda folder, **options: untrained(standin, **options))
    out = tmp_path / "result.json"
    main(flags_for(standin, "--reload", "--out", str(out)))
    assert json.loads(out.read_text())["largest_difference_after_reload"] > 1e-2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dry_run", "True"], "0 steps were trained"),
        (["--warmup", "4"], "raise --max_steps"),
        (["--reload", "--nproc_per_node", "2"], "leave out --nproc_per_node"),
    ],
)
def test_a_run_that_cannot_be_measured_is_refused(standin: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(flags_for(standin, *more))


def test_several_processes_are_measured_together(
    standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "result.json"
    # One sample a step and process, whatever its length: both processes' samples are in the count of the first epoch.
    flags = flags_for(standin, "--nproc_per_node", "2", "--out", str(out), "--data_packing", "False")
    main([*flags, "--max_steps", "-1", "--num_train_epochs", "1"])
    assert json.loads(out.read_text())["steps"] == 6

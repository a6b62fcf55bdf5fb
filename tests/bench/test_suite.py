"""Tests of the commands that the suite starts, and of what it does with a row that cannot run or fails."""

import dataclasses
import sys
from pathlib import Path

import pytest

from qwenvl.bench import suite
from qwenvl.bench.machine import Machine
from qwenvl.bench.observe import Trace
from qwenvl.bench.results import Result
from qwenvl.bench.rows import ROWS
from qwenvl.bench.suite import RowRun, run_suite
from qwenvl.bench.workspace import Workspace
from qwenvl.errors import UserError

CPU = Machine("a CPU", 0, 0.0, None, 0.1, {})
ONE_GPU = Machine("H100", 1, 79.1, "580", 700.0, {})
TWO_GPUS = dataclasses.replace(ONE_GPU, gpus=2)
BY_NAME = {row.name: row for row in ROWS}


class NamesOnly(Workspace):
    """Has the paths of models and data of the real scale, and makes none of them."""

    def _make(self, name: str, *arguments: object) -> Path:
        return self.folder / name


def run_of(name: str, folder: Path, machine: Machine = TWO_GPUS, minutes: float = 1.0) -> RowRun:
    return RowRun(BY_NAME[name], NamesOnly(folder), minutes, machine)


def value(command: list[str], flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


def test_a_row_is_the_training_command_with_the_recipe_and_its_own_flags(tmp_path: Path) -> None:
    command = run_of("bf16-24gib", tmp_path).command()
    assert command[:2] == [sys.executable, suite._PROGRAM] and Path(command[1]).is_file()
    expected = {
        "--lora_r": "64",
        "--max_pixels": "451584",
        "--model_max_length": "8192",
        "--gradient_checkpointing": "True",
    }
    assert expected == {flag: value(command, flag) for flag in expected}
    assert value(command, "--model_name_or_path") == str(tmp_path / "4b")
    assert value(command, "--dataset_use") == str(tmp_path / "xrays_16000" / "train.json")


def test_two_gpus_get_a_launcher_twice_the_data_and_both_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    run = run_of("zero2", tmp_path, minutes=1.5)
    assert run.command()[1:6] == ["-m", "qwenvl.train.launch", "--standalone", "--nproc_per_node", "2"]
    assert value(run.command(), "--dataset_use") == str(tmp_path / "xrays_64000" / "train.json")
    assert run.environment()["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert run_of("bf16", tmp_path).environment()["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_preset_is_started_as_its_script_with_the_model_and_the_data_alone(tmp_path: Path) -> None:
    run = run_of("preset", tmp_path)
    assert run.command() == ["bash", str(suite._ROOT / "scripts/sft_mimic_4b.sh"), "--logging_first_step", "True"]
    variables = {word.partition("=")[0]: word.partition("=")[2] for word in run.as_typed()[:3]}
    assert set(variables) == {"MODEL_PATH", "DATASETS", "OUTPUT_DIR"}
    assert variables.items() <= run.environment().items()
    assert run.warmup.warmup_seconds == 60


def test_another_encoder_is_made_and_gets_no_limits_of_pixels(tmp_path: Path) -> None:
    command = run_of("rad-dino-cached", tmp_path).command()
    assert value(command, "--custom_vision_pretrained_path") == str(tmp_path / "encoder")
    assert value(command, "--cache_vision_features") == str(tmp_path / "features")
    assert "--max_pixels" not in command


def test_a_start_has_a_compile_cache_of_its_own_which_a_cold_one_empties(tmp_path: Path) -> None:
    cache = tmp_path / "compile_cache"
    cache.mkdir()
    run = run_of("start-warm", tmp_path)
    assert run.environment()["TORCHINDUCTOR_CACHE_DIR"] == str(cache) and cache.exists()
    assert value(run.command(), "--max_steps") == "3"
    assert run_of("start-cold", tmp_path).environment()["TORCHINDUCTOR_CACHE_DIR"] == str(cache)
    assert not cache.exists()


def test_the_profiled_run_is_the_command_with_another_program_and_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    state = '{"log_history": [{"step": 1, "loss": 2.0}, {"step": 33, "gpu_idle_share": 0.03}]}'

    def observe(command: list[str], environment: dict, log: Path, **options: object) -> Trace:
        commands.append(command)
        folder = Path(command[-1])
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state)
        return Trace(command, environment)

    monkeypatch.setattr(suite, "observe", observe)
    ran = ["python", "-m", "qwenvl.train.launch", suite._PROGRAM, "--output_dir", "a"]
    assert run_of("bf16", tmp_path).observe_idle(Trace(ran, {})) == 0.03
    assert commands[0][3] == suite._IDLE_PROGRAM and Path(suite._IDLE_PROGRAM).is_file()
    assert commands[0][-2:] == ["--output_dir", str(tmp_path / "runs" / "bf16-profile")]
    state = '{"log_history": []}'
    assert run_of("bf16", tmp_path).observe_idle(Trace(ran, {})) is None


def test_rows_are_skipped_with_what_they_need_and_failures_do_not_stop_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(command: list[str], environment: dict, log: Path, **options: object) -> Trace:
        return Trace(command, environment, ["error: --frozen_weights is no flag"], returncode=2)

    monkeypatch.setattr(suite, "observe", observe)
    rows = [BY_NAME[name] for name in ("bf16", "fp8", "ddp", "rad-dino")]
    small = dataclasses.replace(ONE_GPU, gpu_gib=24.0)
    known = [Result("bf16-24gib", "earlier", {}, 1)]
    options = {"minutes": 1, "profiles": True}
    *_, results = run_suite(rows, NamesOnly(tmp_path), small, known=known, **options)
    assert [result.name for result in results] == ["bf16", "bf16-24gib", "fp8", "rad-dino", "ddp"]
    assert results[0].problem == "needs a GPU of 40 GiB, 24 here" and results[0].status == "skipped"
    assert results[-1].problem == "needs 2 GPUs, 1 here"
    *_, results = run_suite(rows, NamesOnly(tmp_path), ONE_GPU, **options)
    failed = [result for result in results if result.status == "failed"]
    assert [result.name for result in failed] == ["bf16", "fp8", "rad-dino"]
    assert {result.problem for result in failed} == {"--frozen_weights is no flag"}


def test_the_real_shapes_are_refused_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        next(run_suite([BY_NAME["bf16"]], NamesOnly(tmp_path), CPU, minutes=1, profiles=False))

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl import load_checkpoint
from qwenvl.bench.standin import build_standin_encoder
from qwenvl.train.train_qwen import train
from tests.train.conftest import RECIPE, REPOSITORY, command_line, conversation, losses, write_records

Run = Callable[..., Path]
# Few steps at rates that make a wrong gradient show in the next loss.
FLAGS = {"max_steps": 4, "learning_rate": 1e-2, "mm_projector_lr": 1e-2, "lr_scheduler_type": "constant"}


# The first evaluation has the greatest loss: it is the best, so that the best model is another one than the last.
EVALUATION = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "load_best_model_at_end": True,
}


def evaluations(output_dir: Path) -> list[float]:
    """Return the loss and the token accuracy of every evaluation, flat."""
    history = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    return [entry[name] for entry in evaluated for name in ("step", "eval_loss", "eval_token_accuracy")]


@pytest.fixture(scope="module")
def reference_run(standin: Path, image_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of one process with batches of four, evaluated."""
    output_dir = tmp_path_factory.mktemp("reference")
    flags = {"model_name_or_path": standin, "dataset_use": image_records, "output_dir": output_dir} | RECIPE | FLAGS
    train(command_line(**flags | EVALUATION | {"per_device_train_batch_size": 4, "eval_dataset_use": image_records}))
    return output_dir


@pytest.fixture(scope="module")
def reference(reference_run: Path) -> list[float]:
    """Return the losses of one process with batches of four."""
    return losses(reference_run)


@pytest.mark.parametrize("batch", [{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}])
def test_accumulation_gives_the_losses_of_the_large_batch(
    run_training: Run, reference: list[float], batch: dict
) -> None:
    assert losses(run_training(**FLAGS, **batch)) == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize(
    "batch",
    [
        {"per_device_train_batch_size": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "data_flatten": True, "use_cpu": None},
    ],
)
def test_two_processes_give_the_losses_and_evaluations_of_one_and_one_goes_on_where_they_were(
    run_processes: Run, run_training: Run, reference_run: Path, image_records: Path, tmp_path: Path, batch: dict
) -> None:
    flags = FLAGS | EVALUATION | {"eval_dataset_use": image_records}

    output_dir = run_processes(2, **flags | batch)

    assert losses(output_dir) == pytest.approx(losses(reference_run), rel=1e-4)
    assert evaluations(output_dir) == pytest.approx(evaluations(reference_run), rel=1e-4)
    (tmp_path / "alone").mkdir()
    shutil.copytree(output_dir / "checkpoint-2", tmp_path / "alone" / "checkpoint-2")
    alone = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "use_cpu": True}
    resumed = run_training("alone", **flags | batch | alone, resume_from_checkpoint="auto")
    assert losses(resumed) == pytest.approx(losses(reference_run), rel=1e-4)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_trains_when_one_process_has_text_alone(run_processes: Run, media: Path, stage: str) -> None:
    records = [conversation("<image>\nWhat is shown?", "A circle.", image="red.png"), conversation("Say yes.", "Yes.")]
    path = write_records(media / "half_text.json", records)
    flags = FLAGS | {"dataset_use": path, "per_device_train_batch_size": 1, "use_cpu": False}

    output_dir = run_processes(2, **flags, deepspeed=REPOSITORY / f"scripts/{stage}.json")

    series = losses(output_dir)
    assert len(series) == 4
    assert series[-1] < series[0]
    assert (output_dir / "adapter_model.safetensors").is_file()


def test_zero3_saves_a_trained_encoder_with_what_is_frozen_in_it(run_processes: Run, tmp_path: Path) -> None:
    swap = {
        "custom_vision_encoder": "rad_dino",
        "custom_vision_pretrained_path": build_standin_encoder(tmp_path / "encoder"),
        "tune_mm_vision": True,
        "vision_tower_lr": 1e-3,
        "max_pixels": None,
        "min_pixels": None,
    }

    output_dir = run_processes(2, **swap, use_cpu=False, deepspeed=REPOSITORY / "scripts/zero3.json")

    names = load_file(output_dir / "adapter_model.safetensors")
    assert any("encoder" in name and "mask_token" in name for name in names)
    assert all(len(tensor) for tensor in names.values())
    model, _ = load_checkpoint(output_dir, device="cpu")
    assert model.config.vision_config.encoder == "rad_dino"


def test_a_dry_run_under_zero3_needs_no_weights(run_processes: Run, standin: Path, tmp_path: Path) -> None:
    shutil.copytree(standin, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))

    run_processes(
        1,
        model_name_or_path=tmp_path / "model",
        use_cpu=False,
        dry_run=True,
        deepspeed=REPOSITORY / "scripts/zero3.json",
    )


@pytest.mark.parametrize(("stage", "batch", "accumulation"), [("zero2", 1, 2), ("zero3", 2, 1)])
def test_deepspeed_evaluates_keeps_the_best_and_goes_back_to_it_exactly(
    run_processes: Run, reference_run: Path, image_records: Path, stage: str, batch: int, accumulation: int
) -> None:
    flags = FLAGS | EVALUATION | {"eval_dataset_use": image_records, "save_total_limit": 2}
    flags |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    flags |= {"deepspeed": REPOSITORY / f"scripts/{stage}.json", "use_cpu": False}

    output_dir = run_processes(2, **flags)

    whole = losses(output_dir)
    assert whole == pytest.approx(losses(reference_run), rel=1e-4)
    assert evaluations(output_dir) == pytest.approx(evaluations(reference_run), rel=1e-4)
    best, final = (
        load_file(folder / "adapter_model.safetensors") for folder in (output_dir / "checkpoint-2", output_dir)
    )
    assert all(torch.equal(best[name], final[name]) for name in best)

    run_processes(2, **flags, resume_from_checkpoint=output_dir / "checkpoint-2")

    assert losses(output_dir) == whole
    assert [path.name for path in (output_dir / "superseded").iterdir()] == ["checkpoint-4"]


def has_logged_a_step(output_dir: Path) -> bool:
    """Whether TensorBoard's file has a loss; the Trainer flushes it after each step that it logs."""
    return any(b"train/loss" in events.read_bytes() for events in output_dir.glob("runs/*/events*"))


def test_sigterm_to_the_launcher_saves_and_ends_with_success(
    standin: Path, image_records: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "run"
    flags = {"model_name_or_path": standin, "dataset_use": image_records, "output_dir": output_dir} | RECIPE
    flags |= {"max_steps": 100_000, "dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 50_000}
    command = [sys.executable, "-m", "qwenvl.train.launch", "--standalone", "--nproc_per_node=2"]
    command += [str(REPOSITORY / "qwenvl/train/train_qwen.py"), *command_line(**flags | {"report_to": "tensorboard"})]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not has_logged_a_step(output_dir) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    finally:
        run.kill()

    assert run.returncode == 0, errors[-2000:]
    assert "continue with the same command and --resume_from_checkpoint auto" in errors
    (checkpoint,) = output_dir.glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").is_file()
    assert not (output_dir / "adapter_config.json").exists()

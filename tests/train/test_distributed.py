from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.conftest import REPOSITORY, conversation, losses, write_records

Run = Callable[..., Path]
# Few steps at rates that make a wrong gradient show in the next loss.
FLAGS = {"max_steps": 4, "learning_rate": 1e-2, "mm_projector_lr": 1e-2, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def reference(standin: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of one process with batches of four."""
    from qwenvl.train.train_qwen import train
    from tests.train.conftest import RECIPE, command_line

    output_dir = tmp_path_factory.mktemp("reference")
    flags = {"model_name_or_path": standin, "dataset_use": pictures, "output_dir": output_dir} | RECIPE | FLAGS
    train(command_line(**flags | {"per_device_train_batch_size": 4}))
    return losses(output_dir)


@pytest.mark.parametrize("batch", [{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}])
def test_accumulation_gives_the_losses_of_the_large_batch(
    run_training: Run, reference: list[float], batch: dict
) -> None:
    assert losses(run_training(**FLAGS, **batch)) == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize(
    "batch",
    [
        {"per_device_train_batch_size": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "data_flatten": True},
    ],
)
def test_two_processes_give_the_losses_of_one(run_processes: Run, reference: list[float], batch: dict) -> None:
    assert losses(run_processes(2, **FLAGS, **batch)) == pytest.approx(reference, rel=1e-4)


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

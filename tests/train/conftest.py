"""Small runs that the tests of training share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl.train.train_qwen import train
from qwenvl.train.trainer import QwenVLTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
# The mission's recipe at the stand-in's size.
RECIPE = {
    "tune_mm_llm": True,
    "tune_mm_mlp": True,
    "tune_mm_vision": False,
    "lora_enable": True,
    "lora_r": 4,
    "lora_alpha": 8,
    "learning_rate": 2e-3,
    "mm_projector_lr": 1e-3,
    "model_max_length": 512,
    "max_pixels": 16384,
    "min_pixels": 1024,
    "per_device_train_batch_size": 2,
    "max_steps": 3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def conversation(question: str, answer: str, **media: object) -> dict:
    """Return a record of one question and one answer."""
    return {**media, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def write_records(path: Path, records: list) -> Path:
    """Write records as a JSON file and return its path."""
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def command_line(**flags: object) -> list[str]:
    """Turn flags into the command line of train_qwen.py; None leaves a flag out, and LoRA off its rank and scale."""
    if flags.get("lora_enable") is False:
        flags |= dict.fromkeys(("lora_r", "lora_alpha"))
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]


def losses(output_dir: Path) -> list[float]:
    """Return the loss of every step that a run logged."""
    history = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="session")
def image_records(media: Path) -> Path:
    """Return an annotation file of twelve records: images of several sizes, two in one record, and text alone."""
    names = ["red.png", "wide.png", "tall.png", "grey.png"]
    records = [conversation("<image>\nWhat is shown?", f"An image {name}.", image=name) for name in names * 2]
    records += [conversation("<image>\n<image>\nCompare.", "Two.", image=["red.png", "tall.png"])]
    records += [conversation(f"Say {word}.", f"{word}, as you asked me to.") for word in ("yes", "no", "maybe")]
    return write_records(media / "images.json", records)


@pytest.fixture
def train_here(standin: Path, image_records: Path, tmp_path: Path) -> Callable[..., QwenVLTrainer | None]:
    """Return a function that trains in this process with the recipe and these flags, and returns the trainer."""

    def run(name: str = "run", **flags: object) -> QwenVLTrainer | None:
        required = {"model_name_or_path": standin, "dataset_use": image_records, "output_dir": tmp_path / name}
        return train(command_line(**required | RECIPE | flags))

    return run


@pytest.fixture
def run_training(train_here: Callable[..., QwenVLTrainer | None], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains as `train_here` does, and returns the output folder."""

    def run(name: str = "run", **flags: object) -> Path:
        train_here(name, **flags)
        return tmp_path / name

    return run


@pytest.fixture
def run_processes(standin: Path, image_records: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains with torchrun on so many CPU processes, and returns the output folder."""

    def run(processes: int, name: str = "run", **flags: object) -> Path:
        output_dir = tmp_path / name
        arguments = (
            {"model_name_or_path": standin, "dataset_use": image_records, "output_dir": output_dir} | RECIPE | flags
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [str(REPOSITORY / "qwenvl/train/train_qwen.py"), *command_line(**arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "accumulation steps mismatch" not in done.stderr
        return output_dir

    return run

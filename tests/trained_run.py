"""Share one small trained run, with two checkpoints, between the tests of checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from qwenvl.train.train_qwen import train
from tests.train.conftest import RECIPE, command_line, conversation, write_records
from tests.vision.small_encoders import DINOV2


@pytest.fixture(scope="session")
def trained_flags(standin: Path, media: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the flags of a run of two steps, each saved: LoRA and merger beside a small encoder of another kind."""
    torch.manual_seed(0)
    encoder = tmp_path_factory.mktemp("encoders") / "rad-dino"
    Dinov2Model(Dinov2Config(**DINOV2)).save_pretrained(encoder)
    records = [conversation("<image>\nWhat is shown?", f"Image {i}.", image="red.png") for i in range(4)]
    swap = {"custom_vision_encoder": "rad_dino", "custom_vision_pretrained_path": encoder}
    saves = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    return {
        **RECIPE,
        **swap,
        **saves,
        "model_name_or_path": standin,
        "dataset_use": write_records(media / "checkpoint_records.json", records),
        "max_pixels": None,
        "min_pixels": None,
    }


@pytest.fixture(scope="session")
def trained(trained_flags: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of that run, with checkpoint-1 and checkpoint-2; read only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(command_line(**trained_flags, output_dir=folder))
    return folder


@pytest.fixture
def own_copy(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of that output folder."""
    return shutil.copytree(trained, tmp_path / "run")


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def emptied(content: bytes) -> bytes:
    return b""


def garbage(content: bytes) -> bytes:
    return bytes((i * 151 + 7) % 256 for i in range(1000))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def deleted(content: bytes) -> None:
    return None


Break = Callable[[bytes], bytes | None]
WAYS_TO_BREAK: tuple[Break, ...] = (half, zeroed, emptied, garbage, flipped, deleted)


def break_file(path: Path, way: Break) -> bytes:
    """Break a file and return what it held, to put back."""
    content = path.read_bytes()
    path.unlink()
    if (broken := way(content)) is not None:
        path.write_bytes(broken)
    return content

"""The estimate of GPU memory, against peaks measured on H200 GPUs (docs/benchmarks.md)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainingArguments

from qwenvl.bench.real_shape import real_shape_config
from qwenvl.model.lora import LoraSettings, add_adapter
from qwenvl.train.memory import BatchShape, Sharding, estimate_memory, memory_table

PACK = 16384
PATCHES_OF_A_PACK = 32000


def estimated(standin: Path, shape: str, supervised: int, *, checkpointed: bool, sharding: Sharding) -> float:
    """Return the estimate in GiB for packs with LoRA of rank 8 and all mergers trained, without taking any memory."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(real_shape_config(standin, shape), dtype=torch.bfloat16)
    lora = LoraSettings(8, 16, 0.0, "q_proj,k_proj,v_proj,o_proj")
    model = add_adapter(model, lora, train={"merger"})
    batch = BatchShape(PACK, supervised, PATCHES_OF_A_PACK)
    return estimate_memory(model, batch, gradient_checkpointing=checkpointed, sharding=sharding)["total"]


@pytest.mark.parametrize(
    ("shape", "supervised", "checkpointed", "sharding", "measured"),
    [
        ("4b", 9532, False, Sharding(), 101.1),
        ("4b", 9532, True, Sharding(), 25.2),
        ("8b", 9532, True, Sharding(), 35.9),
        ("4b", 8533, True, Sharding(2), 24.6),
        ("4b", 8533, True, Sharding(2, 2), 18.7),
        ("4b", 8533, True, Sharding(2, 3), 16.5),
    ],
)
def test_the_estimate_is_not_below_what_was_measured_and_little_above(
    standin: Path, shape: str, supervised: int, checkpointed: bool, sharding: Sharding, measured: float
) -> None:
    total = estimated(standin, shape, supervised, checkpointed=checkpointed, sharding=sharding)

    assert measured <= total <= 1.2 * measured


def test_the_table_has_a_row_for_each_part_and_their_sum_last(standin: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(standin)
    summary = SimpleNamespace(max_tokens=64, most_supervised=16, most_patches=32)
    args = TrainingArguments(str(tmp_path), use_cpu=True, activation_checkpointing=True)

    head, *rows = memory_table(model, summary, args, Sharding())

    assert head == ("GPU memory of a process", "GiB")
    assert rows[-1][0] == "total"
    estimate = estimate_memory(model, BatchShape(64, 16, 32), gradient_checkpointing=True)
    assert rows == [(name, f"{gib:.2f}") for name, gib in estimate.items()]

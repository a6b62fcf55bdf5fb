"""The estimate of GPU memory, against a peak measured on one H100 80GB (docs/benchmarks.md)."""

from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForImageTextToText

from qwenvl.bench.real_shape import real_shape_config
from qwenvl.model.lora import LoraSettings, add_adapter
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.memory import BatchShape, Sharding, estimate_memory, memory_table

PACK = 16384
PATCHES_OF_A_PACK = 53000


def estimated(standin: Path, shape: str, *, checkpointed: bool, compiled: bool, sharding: Sharding) -> float:
    """Return the estimate in GiB for packs with LoRA of rank 64 and all mergers trained, without taking any memory."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(real_shape_config(standin, shape), dtype=torch.bfloat16)
    lora = LoraSettings(64, 128, 0.0, "q_proj,k_proj,v_proj,o_proj")
    model = add_adapter(model, lora, train={"merger"})
    return estimate_memory(
        model,
        BatchShape(PACK, 3000, PATCHES_OF_A_PACK),
        gradient_checkpointing=checkpointed,
        compiled=compiled,
        sharding=sharding,
    )["total"]


def test_the_estimate_of_compiled_layers_is_not_below_what_was_measured_and_little_above(standin: Path) -> None:
    total = estimated(standin, "4b", checkpointed=False, compiled=True, sharding=Sharding())

    assert 66.5 <= total <= 1.1 * 66.5


def test_compiling_checkpointing_and_sharding_each_lower_the_estimate(standin: Path) -> None:
    plain = estimated(standin, "4b", checkpointed=False, compiled=False, sharding=Sharding())
    compiled = estimated(standin, "4b", checkpointed=False, compiled=True, sharding=Sharding())
    checkpointed = estimated(standin, "4b", checkpointed=True, compiled=True, sharding=Sharding())
    zero2 = estimated(standin, "4b", checkpointed=True, compiled=True, sharding=Sharding(2, 2))

    assert plain > 1.2 * compiled > 3 * checkpointed > 3 * zero2


def test_logits_take_no_more_with_more_supervised_tokens_than_exist_at_a_time(standin: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(standin)
    few, many, more = (
        estimate_memory(model, BatchShape(PACK, supervised, 32), gradient_checkpointing=True)["logits"]
        for supervised in (512, 1024, 9000)
    )

    assert 2 * few == many == more


def test_the_table_has_a_row_for_each_part_and_their_sum_last(standin: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(standin)
    summary = SimpleNamespace(max_tokens=64, most_supervised=16, most_patches=32)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=True)

    head, *rows = memory_table(model, summary, args, Sharding())

    assert head == ("GPU memory of a process", "GiB")
    assert rows[-1][0] == "total"
    estimate = estimate_memory(model, BatchShape(64, 16, 32), gradient_checkpointing=True)
    assert rows == [(name, f"{gib:.2f}") for name, gib in estimate.items()]


def test_without_a_gpu_the_table_has_both_choices_of_auto(standin: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(standin)
    summary = SimpleNamespace(max_tokens=64, most_supervised=16, most_patches=32)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)

    head, *rows = memory_table(model, summary, args, Sharding())

    assert head == ("GPU memory of a process", "GiB", "GiB, recomputing activations")
    kept, recomputed = (
        estimate_memory(model, BatchShape(64, 16, 32), gradient_checkpointing=choice)["total"]
        for choice in (False, True)
    )
    assert rows[-1] == ("total", f"{kept:.2f}", f"{recomputed:.2f}")

"""Owns the plan of a run: what a training command will do, told before it does it."""

import logging
import math

import numpy as np
from torch import nn

from qwenvl.data.data_processor import DataModule, SupervisedDataset
from qwenvl.data.packing import PackSampler
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.memory import BatchShape, Sharding, estimate_memory
from qwenvl.train.param_groups import format_table

logger = logging.getLogger(__name__)


def report_plan(model: nn.Module, data: DataModule, training_args: TrainingArguments) -> None:
    """Log what a run will do: samples, batches, steps, tokens a step, and the GPU memory it will take."""
    plan = plan_table(data, training_args)
    memory = estimate_memory(
        model,
        largest_batch(data.train_dataset, data.train_sampler),
        gradient_checkpointing=training_args.gradient_checkpointing,
        sharding=sharding(training_args),
    )
    rows = [("GPU memory of a process", "GiB")] + [(name, f"{gib:.2f}") for name, gib in memory.items()]
    logger.info("the plan:\n%s", format_table(plan))
    logger.info("an estimate of the memory:\n%s", format_table(rows))


def plan_table(data: DataModule, training_args: TrainingArguments) -> list[tuple[str, ...]]:
    """Return the plan of a run as the rows of a table."""
    dataset, counts = data.train_dataset, data.train_dataset.counts
    batches = len(data.train_sampler)
    steps_per_epoch = math.ceil(batches / training_args.gradient_accumulation_steps)
    steps = training_args.max_steps
    if steps <= 0:
        steps = math.ceil(steps_per_epoch * training_args.num_train_epochs)
    tokens = int(counts.total.sum())
    rows = {
        "samples": len(dataset),
        "packs": len(dataset.packs),
        "batches per epoch and process": batches,
        "steps per epoch": steps_per_epoch,
        "steps": steps,
        "samples a step": round(len(dataset) / steps_per_epoch),
        "tokens a step": round(tokens / steps_per_epoch),
        "tokens": tokens,
        "supervised tokens": int(counts.supervised.sum()),
        "tokens of a sample, median": int(np.median(counts.total)),
        "tokens of a sample, most": int(counts.total.max()),
        "samples for evaluation": len(data.eval_dataset) if data.eval_dataset is not None else 0,
        "samples left out": data.bad_samples.count,
    }
    return [("what", "how many")] + [(name, f"{number:,}") for name, number in rows.items()]


def largest_batch(dataset: SupervisedDataset, sampler: PackSampler) -> BatchShape:
    """Return the most that any micro-batch of the first epoch holds, of each kind.

    Padding is left out: padded batches take somewhat more.
    """
    batches = [[draw.index for draw in batch] for batch in sampler]

    def most(counts: np.ndarray) -> int:
        return max(int(counts[batch].sum()) for batch in batches)

    return BatchShape(
        tokens=most(dataset.counts.total),
        supervised=most(dataset.counts.supervised),
        patches=most(dataset.counts.patches),
    )


def sharding(training_args: TrainingArguments) -> Sharding:
    """Return how the processes of a run share memory."""
    plugin = training_args.deepspeed_plugin
    return Sharding(training_args.world_size, plugin.zero_stage if plugin is not None else 0)

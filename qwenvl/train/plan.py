"""Owns the plan of a run: what a training command will do, told before it does it."""

import logging
import math

from torch import nn

from qwenvl.data.data_processor import DataModule
from qwenvl.data.summary import DataSummary, summarize
from qwenvl.train.argument import DataArguments, TrainingArguments
from qwenvl.train.memory import BatchShape, Sharding, estimate_memory
from qwenvl.train.param_groups import format_table

logger = logging.getLogger(__name__)


def report_plan(model: nn.Module, data: DataModule, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Log what a run will do: samples, batches, steps, tokens a step, and the GPU memory it will take."""
    if data_args.data_packing and data_args.data_flatten:
        logger.info("--data_packing and --data_flatten: samples are packed, which makes flat rows as well")
    padded = not (data_args.data_flatten or data_args.data_packing)
    summary = summarize(data.train_dataset, data.train_sampler, padded)
    memory = estimate_memory(
        model,
        BatchShape(summary.most_tokens, summary.most_supervised, summary.most_patches),
        gradient_checkpointing=training_args.gradient_checkpointing,
        sharding=_sharding(training_args),
    )
    rows = [("GPU memory of a process", "GiB")] + [(name, f"{gib:.2f}") for name, gib in memory.items()]
    logger.info("the plan:\n%s", format_table(_plan_table(summary, data, training_args)))
    logger.info("an estimate of the memory:\n%s", format_table(rows))


def _plan_table(summary: DataSummary, data: DataModule, training_args: TrainingArguments) -> list[tuple[str, ...]]:
    steps_per_epoch = math.ceil(summary.micro_batches / training_args.gradient_accumulation_steps)
    steps = training_args.max_steps
    if steps <= 0:
        steps = math.ceil(steps_per_epoch * training_args.num_train_epochs)
    rows = {
        "samples": f"{summary.num_samples:,}",
        "  with images": f"{summary.num_with_images:,}",
        "  with videos": f"{summary.num_with_videos:,}",
        "  with neither": f"{summary.num_text_only:,}",
        "samples left out": f"{data.bad_samples.count:,}",
        "samples for evaluation": f"{len(data.eval_dataset) if data.eval_dataset is not None else 0:,}",
        "tokens": f"{summary.num_tokens:,}",
        "supervised tokens": f"{summary.num_supervised:,}",
        "longest sample, tokens": f"{summary.longest_sample:,}",
        "packs": f"{summary.num_packs:,}",
        "padding": f"{summary.padding_share:.1%}",
        "batches per epoch and process": f"{summary.micro_batches:,}",
        "steps per epoch": f"{steps_per_epoch:,}",
        "steps": f"{steps:,}",
        "samples a step": f"{summary.num_samples / steps_per_epoch:,.1f}",
        "tokens a step": f"{summary.num_tokens / steps_per_epoch:,.0f}",
    }
    return [("what", "how many"), *rows.items()]


def _sharding(training_args: TrainingArguments) -> Sharding:
    plugin = training_args.deepspeed_plugin
    return Sharding(training_args.world_size, plugin.zero_stage if plugin is not None else 0)

"""Describe a run for its checkpoints: its processes, its samples, and the values that took effect."""

from typing import Any

from qwenvl.checkpoint.data_digest import describe_data
from qwenvl.data.data_processor import DataModule
from qwenvl.train.argument import TrainingArguments


def describe_processes(training_args: TrainingArguments) -> dict[str, Any]:
    """Return what a checkpoint records of the processes that wrote it."""
    plugin = training_args.deepspeed_plugin
    return {"world_size": training_args.world_size, "zero_stage": None if plugin is None else plugin.zero_stage}


def describe_samples(data: DataModule) -> dict[str, Any]:
    """Return what a checkpoint records of the samples for training and for evaluation."""
    evaluation = None if data.eval_dataset is None else describe_data(data.eval_dataset)
    return {"data": describe_data(data.train_dataset), "eval_data": evaluation}

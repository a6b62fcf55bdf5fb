"""Describe a run for its checkpoints: its processes, its samples, and the values that took effect."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from qwenvl.checkpoint.data_digest import describe_data
from qwenvl.data.data_processor import DataModule
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.prepare import Prepared

_PACKAGES = ("torch", "transformers", "peft", "qwenvl-finetune")


def describe_processes(training_args: TrainingArguments) -> dict[str, Any]:
    """Return what a checkpoint records of the processes that wrote it."""
    plugin = training_args.deepspeed_plugin
    return {"world_size": training_args.world_size, "zero_stage": None if plugin is None else plugin.zero_stage}


def describe_samples(data: DataModule) -> dict[str, Any]:
    """Return what a checkpoint records of the samples for training and for evaluation."""
    evaluation = None if data.eval_dataset is None else describe_data(data.eval_dataset)
    return {"data": describe_data(data.train_dataset), "eval_data": evaluation}


def describe_effect(prepared: Prepared, training_args: TrainingArguments) -> dict[str, Any]:
    """Return the micro-batches of a step, and under a key that the resume check ignores all values that took effect."""
    processor, video = prepared.base.processor, prepared.base.processor.video_processor
    return {
        "gradient_accumulation_steps": training_args.gradient_accumulation_steps,
        "effective": {
            "image_size": _size_of(processor.image_processor),
            "video_size": _size_of(video),
            "video_frames": {"fps": video.fps, "min": video.min_frames, "max": video.max_frames},
            "attention": prepared.attention.backend,
            "compiled": bool(training_args.torch_compile),
            "processes": training_args.world_size,
            "gpus": training_args.world_size if training_args.device.type == "cuda" else 0,
            "device": torch.cuda.get_device_name() if training_args.device.type == "cuda" else "cpu",
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
            "git_commit": find_git_commit(Path(__file__).parent),
        },
    }


def _size_of(media_processor: Any) -> dict[str, int]:
    """Return the pixel limits of an image or video processor, or its fixed height and width."""
    return {name: value for name, value in dict(media_processor.size).items() if value is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, not installed but run from its checkout
        return None


def find_git_commit(folder: Path) -> str | None:
    """Return the commit of the git checkout that tracks this folder's files, None outside one or without git."""
    command = ["git", "-C", str(folder)]
    try:
        tracked = subprocess.run([*command, "ls-files", "--", "."], capture_output=True, text=True, timeout=10)
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A package installed inside another project's checkout is not tracked there.
    return head.stdout.strip() if head.returncode == 0 and tracked.stdout else None

"""Check the flags of a command line as given: the ranges of their numbers, and whether each takes effect."""

import dataclasses
import enum
import importlib.util
import json
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from transformers.integrations import get_available_reporting_integrations

from qwenvl.errors import UserError
from qwenvl.train.flag_rules import ACTS, FLAG_RULES, Flags, Needs, Refused, read_choice
from qwenvl.train.optimizers import check_optimizer_name

logger = logging.getLogger(__name__)

_COMPILE_MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")
_METRICS = ("loss", "eval_loss", "token_accuracy", "eval_token_accuracy")
_JSON_FLAGS = {
    "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}',
    "activation_checkpointing_kwargs": '{"every_n_layers": 2}',
    "gradient_checkpointing_kwargs": '{"use_reentrant": false}',
}
_CHECKPOINTING_KEYS = (
    "use_reentrant",
    "preserve_rng_state",
    "determinism_check",
    "debug",
    "early_stop",
    "every_n_layers",
    "offload",
)


class Range(NamedTuple):
    """The range of a flag's numbers: from `least` (or above it, if `is_open`) to below `below`."""

    least: float
    is_open: bool = False
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        """Whether a number is in the range."""
        above = number > self.least if self.is_open else number >= self.least
        return above and (self.below is None or number < self.below)

    def __str__(self) -> str:
        if self.below is not None:
            return f"a number from {self.least} to below {self.below}"
        return f"a number above {self.least}" if self.is_open else f"{self.least} or more"


_COUNT, _NOT_NEGATIVE, _POSITIVE, _SHARE = Range(1), Range(0), Range(0, is_open=True), Range(0, below=1)
RANGES = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_total_limit",
            "dataloader_prefetch_factor",
            "torch_empty_cache_steps",
            "ddp_timeout",
            "ddp_bucket_cap_mb",
            "model_max_length",
            "lora_r",
            "lora_alpha",
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "mm_projector_lr",
            "vision_tower_lr",
            "warmup_steps",
            "weight_decay",
            "adam_epsilon",
            "max_grad_norm",
            "eval_delay",
            "dataloader_num_workers",
        ),
        _NOT_NEGATIVE,
    ),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "neftune_noise_alpha"), _POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout", "warmup_ratio"), _SHARE),
    **dict.fromkeys(("seed", "data_seed"), Range(0, below=2**32)),  # what numpy's generators take
}


def check_flags(flags: Flags, default_of: Callable[[str], Any]) -> None:
    """Raise `UserError` for the first flag with an invalid value or without effect; defaults always pass.

    `flags` are the values as given, `default_of` returns a flag's default.
    """
    given = {name: value for name, value in flags.items() if value != default_of(name)}
    for name, value in given.items():
        _check_number(name, value)
    _check_length(given)
    if "optim" in given:
        check_optimizer_name(given["optim"])
    for name in given:
        _check_rule(name, flags)
    for name, example in _JSON_FLAGS.items():
        if name in given:
            _check_json(name, given[name], example)
    _check_checkpointing(flags)
    _check_best_model(flags)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name} {value}: give a finite number")
    if name in RANGES and isinstance(value, int | float) and value not in RANGES[name]:
        raise UserError(f"--{name} {format_value(value)}: give {RANGES[name]}")


def _check_length(given: Flags) -> None:
    steps = given.get("max_steps", -1)
    if "max_steps" in given and steps < 1:
        raise UserError(f"--max_steps {steps} trains nothing; give 1 or more, or leave it out for --num_train_epochs")
    if steps < 1 and given.get("num_train_epochs", 1) <= 0:
        raise UserError(f"--num_train_epochs {given['num_train_epochs']:g} trains nothing; give a number above 0")


def _check_rule(name: str, flags: Flags) -> None:
    rule = FLAG_RULES.get(name, ACTS)
    if name not in FLAG_RULES and name in {each.name for each in dataclasses.fields(transformers.TrainingArguments)}:
        rule = Refused("it belongs to a newer version of Transformers than this program supports")
    if isinstance(rule, Refused):
        value = "..." if name.endswith("_token") else format_value(flags[name])
        raise UserError(f"--{name} {value} has no effect here: {rule.why}; leave it out")
    if isinstance(rule, Needs) and not rule.is_met(flags):
        raise UserError(f"--{name} {format_value(flags[name])} needs {rule.what}; set that, or leave --{name} out")


def format_value(value: Any) -> str:
    """Return a flag's value as written on a command line."""
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, enum.Enum) else value)


def _check_json(name: str, text: Any, example: str) -> None:
    try:
        settings = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"--{name} {text}: expected a JSON object, such as '{example}'")
    unknown = [key for key in settings if key not in _CHECKPOINTING_KEYS]
    if name != "lr_scheduler_kwargs" and unknown:
        raise UserError(f"--{name}: unknown setting {unknown[0]!r}; choose from {', '.join(_CHECKPOINTING_KEYS)}")


def _check_checkpointing(flags: Flags) -> None:
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        values = [flags[old] if suffix else read_choice(old, flags[old]), flags[new]]
        if None not in values and values[0] != values[1]:
            raise UserError(f"--{old} {flags[old]} and --{new} {flags[new]} are the same setting; give one of them")


def _check_best_model(flags: Flags) -> None:
    metric, save, evaluate = flags["metric_for_best_model"], flags["save_strategy"], flags["eval_strategy"]
    if metric is not None and metric not in _METRICS:
        raise UserError(
            f"--metric_for_best_model {metric} is not measured here; choose eval_loss or eval_token_accuracy"
        )
    if save == "best" and metric is None:
        raise UserError("--save_strategy best needs --metric_for_best_model eval_loss or eval_token_accuracy")
    if save == "best" and evaluate == "no":
        raise UserError("--save_strategy best needs --eval_strategy steps or epoch")
    if flags["load_best_model_at_end"] and save not in ("best", format_value(evaluate)):
        raise UserError(
            "--load_best_model_at_end True needs a checkpoint at each evaluation; set --save_strategy "
            f"{format_value(evaluate)}, or best"
        )


def check_samples_per_step(samples: int, accumulation: int) -> None:
    """Raise `UserError` for a number of samples that is none, or beside a number of micro-batches."""
    if samples < 1:
        raise UserError(f"--samples_per_step {samples}: expected at least 1")
    if accumulation != 1:
        raise UserError(
            f"--samples_per_step {samples} sets how many micro-batches make a step; leave out "
            f"--gradient_accumulation_steps {accumulation}"
        )


def check_machine(training_args: transformers.TrainingArguments) -> None:
    """Raise `UserError` for flags that this machine, or its installed packages, cannot support."""
    installed = get_available_reporting_integrations()
    for tracker in training_args.report_to:
        package = importlib.util.find_spec(tracker)
        if tracker not in installed and (
            package is None or package.origin is None
        ):  # a namespace package, a plain folder of that name, has no origin
            raise UserError(f"--report_to {tracker}: it is not installed; pip install {tracker}, or use tensorboard")
    if training_args.n_gpu > 1:
        raise UserError(
            f"{training_args.n_gpu} GPUs are visible to one process; start one process for each with `torchrun "
            f"--nproc_per_node {training_args.n_gpu}`, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    if training_args.fp16 and training_args.device.type == "cpu":
        raise UserError("--fp16 True needs a GPU; use --bf16 True, or leave it out to compute in float32")
    if training_args.torch_compile:
        _check_compilation(training_args.torch_compile_backend, training_args.torch_compile_mode)


def warn_of_worst_model(training_args: transformers.TrainingArguments) -> None:
    """Log a warning if `--greater_is_better` would keep the worst checkpoint as the best."""
    metric = training_args.metric_for_best_model
    if metric is not None and training_args.greater_is_better != metric.endswith("accuracy"):
        logger.warning(
            "--greater_is_better %s keeps the worst checkpoint as the best: %s is better when it is %s",
            training_args.greater_is_better,
            metric,
            "higher" if metric.endswith("accuracy") else "lower",
        )


def _check_compilation(backend: str, mode: str | None) -> None:
    known = torch.compiler.list_backends()
    if backend not in known and backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"--torch_compile_backend {backend} is unknown; choose from {', '.join(known)}")
    if mode not in _COMPILE_MODES:
        raise UserError(f"--torch_compile_mode {mode} is unknown; choose from {', '.join(_COMPILE_MODES[1:])}")

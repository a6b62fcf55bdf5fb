"""Check the optimizer and the schedule of a run, by name and by building them, before the model exists."""

import difflib
import inspect
import math
from collections.abc import Mapping

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from qwenvl.errors import UserError

# Schedules that depend on the evaluation, and those without a warmup or without settings.
MEASURED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
WITHOUT_WARMUP = ("constant", *MEASURED_SCHEDULES)
WITHOUT_SETTINGS = ("linear", "constant", "constant_with_warmup")
# Optimizers that take --optim_args, and the names they take; --weight_decay would override a weight decay there.
_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
_ANYPRECISION = ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
OPTIM_ARGS = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "adamw_anyprecision": _ANYPRECISION,
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
    "adamw_torch_4bit": ("bf16_stochastic_round",),
    "adamw_torch_8bit": ("bf16_stochastic_round",),
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_32bit": _ADEMAMIX,
    "paged_ademamix_8bit": _ADEMAMIX,
}
# Optimizers that read none of --adam_beta1, --adam_beta2 and --adam_epsilon.
WITHOUT_BETAS = (
    *("sgd", "adagrad", "rmsprop", "adafactor", "grokadamw"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
_OWN_GROUPS = "it makes parameter groups of its own, in which the components' learning rates would be lost"
_REFUSED_OPTIMIZERS = {
    "galore": _OWN_GROUPS,
    "apollo": _OWN_GROUPS,
    "lomo": _OWN_GROUPS,
    "adalomo": _OWN_GROUPS,
    "schedule_free": "evaluations and checkpoints would take other weights than those it averages",
}


def check_optimizer_name(name: str) -> None:
    """Raise `UserError` for a name of `--optim` that Transformers does not know, or that cannot train here."""
    names = [each.value for each in OptimizerNames]
    if name not in names:
        usual = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]
        nearest = [each for each in usual if each.startswith(name)] or difflib.get_close_matches(name, names) or usual
        raise UserError(f"--optim {name} is not an optimizer of Transformers; choose for example {', '.join(nearest)}")
    for start, why in _REFUSED_OPTIMIZERS.items():
        if name.startswith(start):
            raise UserError(f"--optim {name} cannot be used here: {why}; use adamw_torch")


def check_optimizer(training_args: TrainingArguments, learning_rates: Mapping[str, float]) -> None:
    """Build the optimizer and the schedule over one parameter, as the trainer will over the model's.

    `learning_rates` are those of the components. Raises `UserError` if a package is missing, or for settings that do
    not fit.
    """
    from transformers import Trainer  # takes a second, which `--help` need not wait for

    name = training_args.optim.value
    _check_optim_args(name, training_args.optim_args)
    parameter = torch.nn.Parameter(torch.zeros(1))
    group = {"params": [parameter], "lr": training_args.learning_rate, "weight_decay": training_args.weight_decay}
    try:
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(training_args)
        optimizer = optimizer_class([group], **settings)
    except Exception as error:  # from many libraries, each with its own exceptions
        raise UserError(f"--optim {name} cannot be used: {_one_line(error)}") from error
    _check_schedule(training_args, optimizer)
    if training_args.lr_scheduler_type.value in MEASURED_SCHEDULES:
        _check_measured_schedule(training_args, min(learning_rates.values()))


def _check_optim_args(name: str, text: str | None) -> None:
    for pair in (text or "").replace(" ", "").split(","):
        key, equals, _ = pair.partition("=")
        if text and (not equals or key not in OPTIM_ARGS[name]):
            raise UserError(
                f"--optim_args {text}: expected NAME=VALUE, with commas between several; the names that {name} takes "
                f"are {', '.join(OPTIM_ARGS[name])}"
            )


def _check_schedule(training_args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    from transformers import get_scheduler

    name, settings = training_args.lr_scheduler_type.value, training_args.lr_scheduler_kwargs or {}
    given = f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {settings or 'left out'}"
    steps = training_args.max_steps if training_args.max_steps > 0 else 1000  # the data has not been read yet
    try:
        scheduler = get_scheduler(name, optimizer, training_args.get_warmup_steps(steps), steps, settings)
        factors = {}
        if isinstance(scheduler, LambdaLR):
            factors = {step: scheduler.lr_lambdas[0](step) for step in range(0, steps, max(steps // 50, 1))}
    except Exception as error:  # the schedule gets the settings as given, and may fail on any of them
        raise UserError(f"{given}: {_one_line(error)}; its settings are {', '.join(_settings_of(name))}") from error
    for step, factor in factors.items():
        if isinstance(factor, complex) or not (math.isfinite(factor) and 0 <= factor <= 1 + 1e-6):
            raise UserError(f"{given} multiplies the learning rate by {factor:g} at step {step} of {steps}")


def _settings_of(name: str) -> list[str]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    made_by = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}.get(
        name, TYPE_TO_SCHEDULER_FUNCTION[name]
    )
    given_by_trainer = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return [each for each in inspect.signature(made_by).parameters if each not in given_by_trainer]


def _check_measured_schedule(training_args: TrainingArguments, lowest: float) -> None:
    name, settings = training_args.lr_scheduler_type.value, training_args.lr_scheduler_kwargs or {}
    mode = "max" if training_args.metric_for_best_model.endswith("accuracy") else "min"
    if settings.get("mode", "min") != mode:
        raise UserError(
            f"--lr_scheduler_type {name} would treat a better {training_args.metric_for_best_model} as a worse one; "
            f"""give --lr_scheduler_kwargs '{{"mode": "{mode}"}}'"""
        )
    # The schedule's default floor is fifty times a usual learning rate of fine-tuning.
    floor = settings.get("min_lr", 1e-3 if name == "greedy" else 0.0)
    if isinstance(floor, int | float) and floor > lowest:
        raise UserError(
            f"--lr_scheduler_type {name} would raise the learning rate {lowest:g} to its min_lr, {floor:g}; give a "
            f"""lower one, such as --lr_scheduler_kwargs '{{"min_lr": {lowest / 10:g}}}'"""
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

import contextlib

import pytest
from transformers import SchedulerType, Trainer
from transformers.training_args import OptimizerNames

from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments, parse_arguments
from qwenvl.train.optimizers import MEASURED_SCHEDULES, OPTIM_ARGS, WITHOUT_BETAS, check_optimizer, check_optimizer_name

OF_TORCH = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
# The settings without which a schedule cannot start.
NECESSARY_SETTINGS = {
    "cosine_with_min_lr": '{"min_lr_rate": 0.1}',
    "cosine_warmup_with_min_lr": '{"min_lr_rate": 0.1}',
    "warmup_stable_decay": '{"num_decay_steps": 10}',
    "greedy": '{"min_lr": 1e-7}',
}


def _parse(*flags: str) -> TrainingArguments:
    return parse_arguments(["--use_cpu", "--eval_strategy", "epoch", "--eval_dataset_use", "x", *flags])[2]


def _check(*flags: str) -> None:
    training_args = _parse(*flags)
    check_optimizer(training_args, training_args.component_learning_rates)


@pytest.mark.parametrize("name", [each.value for each in OptimizerNames])
def test_every_optimizer_is_usable_or_refused_in_one_line(name: str) -> None:
    # The packages of the others may be installed or not.
    with contextlib.nullcontext() if name in OF_TORCH else contextlib.suppress(UserError):
        _check("--optim", name)


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw_layerwise", "lomo", "adalomo", "schedule_free_sgd"])
def test_an_optimizer_that_goes_past_the_groups_of_the_components_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--optim {name} cannot be used here"):
        parse_arguments(["--optim", name])


@pytest.mark.parametrize(("given", "near"), [("adamw", "adamw_torch"), ("adamw_hf", "adamw_torch"), ("zzz", "sgd")])
def test_an_unknown_optimizer_is_refused_with_others_to_choose(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f"--optim {given} is not an optimizer .*{near}"):
        check_optimizer_name(given)


@pytest.mark.parametrize("name", [each.value for each in SchedulerType])
def test_every_schedule_is_usable_with_the_settings_it_needs(name: str) -> None:
    settings = NECESSARY_SETTINGS.get(name)

    _check("--lr_scheduler_type", name, *(["--lr_scheduler_kwargs", settings] if settings else []))


@pytest.mark.parametrize("name", NECESSARY_SETTINGS)
def test_a_schedule_without_the_settings_it_needs_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--lr_scheduler_type {name} .*(min_lr|num_decay_steps)"):
        _check("--lr_scheduler_type", name)


@pytest.mark.parametrize("name", [each.value for each in SchedulerType])
def test_a_setting_that_a_schedule_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--lr_scheduler.*({name}|has settings)"):
        _check("--lr_scheduler_type", name, "--lr_scheduler_kwargs", '{"no_such_setting": 1}')


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cosine", '{"num_cycles": "two"}', "could not convert"),
        ("polynomial", '{"lr_end": 1}', "must be smaller than initial lr"),
        ("polynomial", '{"lr_end": -1}', "multiplies the learning rate by -"),
        ("cosine_with_min_lr", '{"min_lr": 1}', "multiplies the learning rate by .* at step"),
        ("cosine_with_min_lr", '{"min_lr": 1e-6, "min_lr_rate": 0.1}', "Only one of"),
        ("warmup_stable_decay", '{"num_decay_steps": 5, "decay_type": "steep"}', "Unknown decay type"),
        ("reduce_lr_on_plateau", '{"factor": 2}', "Factor should be < 1.0"),
        ("reduce_lr_on_plateau", '{"mode": "max"}', "would treat a better loss as a worse one"),
        ("reduce_lr_on_plateau", '{"min_lr": 1}', "would raise the learning rate 5e-05 to its min_lr"),
    ],
)
def test_a_setting_whose_value_cannot_be_is_refused(name: str, settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check("--lr_scheduler_type", name, "--lr_scheduler_kwargs", settings)


def test_a_schedule_by_the_accuracy_takes_a_higher_one_for_better() -> None:
    flags = ("--lr_scheduler_type", "reduce_lr_on_plateau", "--metric_for_best_model", "token_accuracy")

    with pytest.raises(UserError, match='"mode": "max"'):
        _check(*flags)
    _check(*flags, "--lr_scheduler_kwargs", '{"mode": "max"}')


@pytest.mark.parametrize("name", MEASURED_SCHEDULES)
def test_a_schedule_by_the_evaluation_needs_one(name: str) -> None:
    with pytest.raises(UserError, match=f"--lr_scheduler_type {name} needs --eval_strategy"):
        parse_arguments(["--lr_scheduler_type", name])


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [
        ("fast", "expected NAME=VALUE"),
        ("speed=1", "the names that sgd takes are momentum"),
        ("momentum=0.9,weight_decay=1", "the names that sgd takes are momentum"),
        ("momentum=high", "could not convert"),
        ("momentum=-1", "Invalid momentum value"),
    ],
)
def test_optim_args_that_do_not_fit_are_refused(optim_args: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check("--optim", "sgd", "--optim_args", optim_args)


@pytest.mark.parametrize("name", sorted(OF_TORCH & set(OPTIM_ARGS)))
def test_every_optim_arg_reaches_the_optimizer(name: str) -> None:
    given = {"nesterov": "true", "centered": "true", "dampening": "0.25"}
    for key in OPTIM_ARGS[name]:
        _, settings = Trainer.get_optimizer_cls_and_kwargs(
            _parse("--optim", name, "--optim_args", f"{key}={given.get(key, '0.25')}")
        )
        assert settings[key] == (True if given.get(key) == "true" else 0.25)


@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_the_betas_reach_the_optimizers_that_are_said_to_read_them(name: str) -> None:
    _, settings = Trainer.get_optimizer_cls_and_kwargs(_parse("--optim", name))

    assert ("betas" in settings) == (name not in WITHOUT_BETAS)

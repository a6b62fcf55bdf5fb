import dataclasses
from typing import Any

import pytest
import transformers

from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments, parse_arguments
from qwenvl.train.flag_rules import FLAG_RULES, Needs, Refused

OF_TRANSFORMERS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
OWN = {field.name for field in dataclasses.fields(TrainingArguments)} - OF_TRANSFORMERS
FLAGS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
# Values of another kind than true, false or text.
OTHER_VALUES = {
    "accelerator_config": '{"split_batches": true}',
    "activation_checkpointing_kwargs": "{}",
    "adam_beta1": "0.5",
    "adam_beta2": "0.5",
    "adam_epsilon": "0.1",
    "debug": "tpu_metrics_debug",
    "ddp_backend": "gloo",
    "ddp_bucket_cap_mb": "9",
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_prefetch_factor": "3",
    "eval_accumulation_steps": "3",
    "eval_delay": "3",
    "eval_steps": "3",
    "eval_strategy": "steps",
    "gradient_checkpointing_kwargs": "{}",
    "hub_strategy": "end",
    "include_for_metrics": "loss",
    "label_smoothing_factor": "0.1",
    "liger_kernel_config": "{}",
    "logging_steps": "3",
    "lora_alpha": "3",
    "lora_dropout": "0.5",
    "lora_r": "3",
    "lr_scheduler_type": "greedy",
    "lr_scheduler_kwargs": "{}",
    "max_bad_samples": "3",
    "metric_for_best_model": "loss",
    "mm_projector_lr": "0.1",
    "parallelism_config": "{}",
    "save_steps": "3",
    "train_sampling_strategy": "sequential",
    "vision_tower_lr": "0.1",
    "warmup_ratio": "0.1",
    "warmup_steps": "3",
}
# What makes the other flag, on which one depends, be off.
WITHOUT = {
    "adam_beta1": ["--optim", "sgd"],
    "adam_beta2": ["--optim", "sgd"],
    "adam_epsilon": ["--optim", "lion_32bit"],
    "logging_steps": ["--logging_strategy", "epoch"],
    "save_steps": ["--save_strategy", "epoch"],
    "warmup_ratio": ["--lr_scheduler_type", "constant"],
    "warmup_steps": [
        "--lr_scheduler_type",
        "reduce_lr_on_plateau",
        "--eval_strategy",
        "epoch",
        "--eval_dataset_use",
        "x",
    ],
    **{name: ["--deepspeed", "x.json"] for name in FLAGS if name.startswith("ddp_") and name != "ddp_timeout"},
}
# What makes it be on, for flags that act then.
WITH = {
    "activation_checkpointing_kwargs": ["--activation_checkpointing", "True"],
    "gradient_checkpointing_kwargs": ["--gradient_checkpointing", "True"],
    "lr_scheduler_kwargs": ["--lr_scheduler_type", "cosine"],
    "eval_steps": ["--eval_strategy", "steps", "--eval_dataset_use", "x"],
    "eval_delay": ["--eval_strategy", "epoch", "--eval_dataset_use", "x"],
    "eval_on_start": ["--eval_dataset_use", "x"],
    "do_eval": ["--eval_dataset_use", "x"],
    "load_best_model_at_end": ["--eval_strategy", "steps", "--eval_dataset_use", "x"],
    "metric_for_best_model": ["--eval_strategy", "steps", "--eval_dataset_use", "x"],
    "dataloader_persistent_workers": ["--dataloader_num_workers", "1"],
    "dataloader_prefetch_factor": ["--dataloader_num_workers", "1"],
    "mm_projector_lr": ["--tune_mm_mlp", "True"],
    "vision_tower_lr": ["--tune_mm_vision", "True"],
    "lora_enable": ["--tune_mm_llm", "True"],
    "lora_r": ["--lora_enable", "True", "--tune_mm_llm", "True"],
    "lora_target_modules": ["--lora_enable", "True", "--tune_mm_llm", "True"],
    "max_bad_samples": ["--bad_sample_policy", "skip"],
    "project": ["--report_to", "trackio"],
}


def _another_value(name: str) -> str:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    default: Any = FLAGS[name].default
    if default in (True, False) or FLAGS[name].type in (bool, bool | None):
        return str(default is not True)
    return "x"


def _of_kind(kind: type) -> list[str]:
    return [name for name, rule in FLAG_RULES.items() if isinstance(rule, kind)]


def test_every_flag_of_transformers_and_of_ours_has_a_rule() -> None:
    # A new version of Transformers added or dropped flags if this fails: read in its source whether each acts here.
    missing = (OF_TRANSFORMERS | OWN) - set(FLAG_RULES)
    gone = set(FLAG_RULES) - OF_TRANSFORMERS - OWN - {"max_bad_samples"}

    assert (missing, gone) == (set(), set())


@pytest.mark.parametrize("name", _of_kind(Refused))
def test_a_flag_without_effect_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name} .* has no effect here: .*; leave it out"):
        parse_arguments([f"--{name}", _another_value(name)])


@pytest.mark.parametrize("name", _of_kind(Needs))
def test_a_flag_that_needs_another_is_refused_without_it(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name} .* needs .*; set that, or leave --{name} out"):
        parse_arguments([f"--{name}", _another_value(name), *WITHOUT.get(name, [])])


@pytest.mark.parametrize("name", WITH)
def test_a_flag_that_needs_another_is_taken_with_it(name: str) -> None:
    parse_arguments(["--use_cpu", f"--{name}", _another_value(name), *WITH[name]])


@pytest.mark.parametrize(
    "flags",
    [
        "--bf16_full_eval True",
        "--fp16_full_eval True",
        "--prediction_loss_only True",
        "--eval_accumulation_steps 2",
        "--batch_eval_metrics True",
        "--include_for_metrics loss",
        "--eval_do_concat_batches False",
        "--eval_use_gather_object True",
        "--eval_steps 5",
        "--eval_delay 5",
        "--hub_model_id a",
        "--hub_strategy end",
        "--hub_always_push True",
        "--hub_revision a",
        "--hub_private_repo True",
        "--dataloader_multiprocessing_context spawn",
        "--dataloader_in_order False",
        "--dataloader_persistent_workers True",
        "--accelerator_config a.json",
        "--parallelism_config {}",
        "--length_column_name a",
        "--label_names a",
        "--remove_unused_columns True",
        "--optim_args momentum=0.9",
        "--optim_target_modules a",
        "--fsdp full_shard",
        "--fsdp_config a.json",
        "--use_liger_kernel True",
        "--liger_kernel_config {}",
        '--gradient_checkpointing_kwargs {"use_reentrant":false}',
        "--max_bad_samples 5",
        "--do_train False",
        "--do_eval True",
        "--do_predict True",
        "--use_cache True",
        "--save_steps 5 --save_strategy epoch",
        "--warmup_ratio 0.1 --lr_scheduler_type constant",
        "--warmup_steps 5 --lr_scheduler_type constant",
        "--lora_r 8 --tune_mm_llm True",
        "--lora_alpha 8 --tune_mm_llm True",
        "--lora_dropout 0.1 --tune_mm_llm True",
        "--lora_target_modules all-linear --tune_mm_llm True",
        "--enable_jit_checkpoint True",
        "--restore_callback_states_from_checkpoint True",
        "--logging_nan_inf_filter True",
        "--load_best_model_at_end True",
    ],
)
def test_flags_that_once_did_nothing_in_silence_are_refused(flags: str) -> None:
    with pytest.raises(UserError, match=rf"{flags.split()[0]} .*(has no effect here|needs)"):
        parse_arguments(flags.split())


def test_a_flag_of_a_newer_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FLAG_RULES, "neftune_noise_alpha")

    with pytest.raises(UserError, match="--neftune_noise_alpha 5 has no effect here: it belongs to a newer version"):
        parse_arguments(["--neftune_noise_alpha", "5"])


@pytest.mark.parametrize("name", ["do_train", "remove_unused_columns", "logging_nan_inf_filter"])
def test_the_value_that_is_obeyed_anyway_is_taken(name: str) -> None:
    obeyed = "True" if name == "do_train" else "False"

    assert str(getattr(parse_arguments(["--use_cpu", f"--{name}", obeyed])[2], name)) == obeyed

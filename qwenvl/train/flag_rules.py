"""Rules for every field of `TrainingArguments`: whether it takes effect, is refused, or needs another flag."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qwenvl.errors import UserError
from qwenvl.train.optimizers import MEASURED_SCHEDULES, OPTIM_ARGS, WITHOUT_BETAS, WITHOUT_SETTINGS, WITHOUT_WARMUP

# The values of all flags, by name, as they were given.
Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Acts:
    """A flag that always takes effect, whatever the others are."""


@dataclass(frozen=True)
class Refused:
    """A flag that has no effect here, and why."""

    why: str


@dataclass(frozen=True)
class Needs:
    """A flag that takes effect only with another one, described in text and as a predicate over all flags."""

    what: str
    is_met: Callable[[Flags], bool]


ACTS = Acts()


def split_names(value: str | list[str] | None) -> list[str]:
    """Return the names of a flag that takes several, separated by commas or spaces."""
    items = [value] if isinstance(value, str) else value or []
    return [name.strip() for item in items for name in item.split(",") if name.strip()]


def read_choice(name: str, value: str | bool) -> bool | None:
    """Return the truth value of a flag, or None for "auto"; raises `UserError` for any other value."""
    choices = {"auto": None, "true": True, "false": False}
    if str(value).lower() not in choices:
        raise UserError(f"--{name} {value}: expected auto, True or False")
    return choices[str(value).lower()]


def _checkpoints_activations(flags: Flags) -> bool:
    """Whether activations are recomputed for certain: with "auto" they may not be."""
    new = flags["activation_checkpointing"]
    old = read_choice("gradient_checkpointing", flags["gradient_checkpointing"])
    return bool(old if new is None else new)


_EVALUATION = Needs("--eval_strategy steps or epoch", lambda flags: flags["eval_strategy"] != "no")
_EVAL_DATA = Needs("--eval_dataset_use", lambda flags: bool(flags["eval_dataset_use"]))
_LORA = Needs("--lora_enable True (LoRA is off)", lambda flags: flags["lora_enable"])
_WORKERS = Needs("--dataloader_num_workers 1 or more", lambda flags: flags["dataloader_num_workers"] > 0)
_NO_DEEPSPEED = Needs("a run without --deepspeed, which does not use it", lambda flags: not flags["deepspeed"])
_TRACKIO = Needs("--report_to trackio", lambda flags: {"trackio", "all"} & set(split_names(flags["report_to"])))
_CHECKPOINTING = Needs("--gradient_checkpointing True", _checkpoints_activations)
_WARMUP = Needs(
    "an --lr_scheduler_type with a warmup (instead of constant: constant_with_warmup)",
    lambda flags: (
        flags["lr_scheduler_type"] not in WITHOUT_WARMUP or not (flags["warmup_steps"] or flags["warmup_ratio"])
    ),
)
_BETAS = Needs("an Adam-like optimizer as --optim", lambda flags: flags["optim"] not in WITHOUT_BETAS)
_HUB = Refused("nothing is pushed to the hub; upload the output folder with `hf upload` after the run")
_EVAL_LOOP = Refused("the evaluation measures loss and token accuracy in the training's precision, and keeps no logits")
_COLUMNS = Refused("samples have no columns: they are read by this program")
_PLANNED = Refused("batches are planned by --data_packing, --data_flatten and --per_device_train_batch_size")
_SHARDING = Refused("models are sharded by DeepSpeed; give --deepspeed scripts/zero3.json")

# Every field of Transformers' TrainingArguments, in its order, and then ours.
FLAG_RULES: dict[str, Acts | Refused | Needs] = {
    "output_dir": ACTS,
    "per_device_train_batch_size": ACTS,
    "num_train_epochs": ACTS,
    "max_steps": ACTS,
    "learning_rate": ACTS,
    "lr_scheduler_type": Needs(
        "--eval_strategy steps or epoch",
        lambda flags: flags["lr_scheduler_type"] not in MEASURED_SCHEDULES or flags["eval_strategy"] != "no",
    ),
    "lr_scheduler_kwargs": Needs(
        "an --lr_scheduler_type that has settings ({} have none)".format(", ".join(WITHOUT_SETTINGS)),
        lambda flags: flags["lr_scheduler_type"] not in WITHOUT_SETTINGS,
    ),
    "warmup_steps": _WARMUP,
    "optim": ACTS,
    "optim_args": Needs(
        f"an --optim that takes it: {', '.join(OPTIM_ARGS)}", lambda flags: flags["optim"] in OPTIM_ARGS
    ),
    "weight_decay": ACTS,
    "adam_beta1": _BETAS,
    "adam_beta2": _BETAS,
    "adam_epsilon": Needs(
        "an Adam-like optimizer as --optim",
        lambda flags: flags["optim"] not in WITHOUT_BETAS and "lion" not in flags["optim"],
    ),
    "optim_target_modules": Refused("the optimizers that read it are refused; --tune_mm_* choose what is trained"),
    "gradient_accumulation_steps": ACTS,
    "average_tokens_across_devices": ACTS,
    "max_grad_norm": ACTS,
    "label_smoothing_factor": Refused("the loss is the plain cross-entropy of the supervised tokens"),
    "bf16": ACTS,
    "fp16": ACTS,
    "bf16_full_eval": _EVAL_LOOP,
    "fp16_full_eval": _EVAL_LOOP,
    "tf32": ACTS,
    "activation_checkpointing": ACTS,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "gradient_checkpointing": ACTS,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "torch_compile": ACTS,
    "torch_compile_backend": ACTS,  # turns --torch_compile on, and so does the next
    "torch_compile_mode": ACTS,
    # The Qwen3-VL kernels of liger-kernel 0.8.5 fail at import with Transformers 5.23; can go when they load:
    # https://github.com/linkedin/Liger-Kernel/tree/v0.8.5/src/liger_kernel/transformers/model
    "use_liger_kernel": Refused(
        "Liger's kernels for Qwen3-VL do not load with this version of Transformers; use --torch_compile True"
    ),
    "liger_kernel_config": Refused("Liger's kernels are not used"),
    "use_cache": Refused("a key-value cache is not used in training, and would hide the boundaries of packed samples"),
    "neftune_noise_alpha": ACTS,
    "torch_empty_cache_steps": ACTS,
    "auto_find_batch_size": Refused("batches are planned before the first step; --dry_run True estimates their memory"),
    "logging_strategy": ACTS,
    "logging_steps": Needs(
        "--logging_strategy steps",
        lambda flags: flags["logging_strategy"] == "steps" or flags["eval_strategy"] == "steps",
    ),
    "logging_first_step": ACTS,
    "log_on_each_node": ACTS,
    "logging_nan_inf_filter": Refused("a loss that is not finite stops the run"),
    "include_num_input_tokens_seen": ACTS,
    "log_level": ACTS,
    "log_level_replica": ACTS,
    "disable_tqdm": ACTS,
    "report_to": ACTS,
    "run_name": ACTS,  # names the folder of TensorBoard, too
    "project": _TRACKIO,
    "trackio_space_id": _TRACKIO,
    "trackio_bucket_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    "eval_strategy": _EVAL_DATA,
    "eval_steps": Needs("--eval_strategy steps", lambda flags: flags["eval_strategy"] == "steps"),
    "eval_delay": _EVALUATION,
    "per_device_eval_batch_size": ACTS,  # the official scripts give it to runs without evaluation, too
    "prediction_loss_only": _EVAL_LOOP,
    "eval_on_start": _EVAL_DATA,
    "eval_do_concat_batches": _EVAL_LOOP,
    "eval_use_gather_object": _EVAL_LOOP,
    "eval_accumulation_steps": _EVAL_LOOP,
    "include_for_metrics": _EVAL_LOOP,
    "batch_eval_metrics": _EVAL_LOOP,
    "save_only_model": Refused("a checkpoint without the optimizer cannot be resumed exactly; use --save_total_limit"),
    "save_strategy": ACTS,
    "save_steps": Needs("--save_strategy steps", lambda flags: flags["save_strategy"] == "steps"),
    "save_on_each_node": Refused("each machine keeps what it needs to resume"),
    "save_total_limit": ACTS,  # also with --save_strategy no: SIGTERM saves
    "enable_jit_checkpoint": Refused("SIGTERM saves a checkpoint and ends the run already"),
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _TRACKIO,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "load_best_model_at_end": _EVALUATION,
    "metric_for_best_model": _EVALUATION,
    "greater_is_better": _EVALUATION,
    "ignore_data_skip": ACTS,
    "restore_callback_states_from_checkpoint": Refused("no callback has a state to restore"),
    "full_determinism": ACTS,
    "seed": ACTS,
    "data_seed": ACTS,
    "use_cpu": ACTS,
    "accelerator_config": _PLANNED,
    "parallelism_config": _SHARDING,
    "dataloader_drop_last": Refused("no sample is dropped, the last step is smaller"),
    "dataloader_num_workers": ACTS,
    "dataloader_pin_memory": ACTS,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_multiprocessing_context": Refused("data workers are started in the system's default way"),
    "dataloader_in_order": Refused("batches come in the order that was planned, so that a run can be resumed exactly"),
    "remove_unused_columns": _COLUMNS,
    "label_names": _COLUMNS,
    "train_sampling_strategy": _PLANNED,
    "length_column_name": _COLUMNS,
    "ddp_find_unused_parameters": _NO_DEEPSPEED,
    "ddp_bucket_cap_mb": _NO_DEEPSPEED,
    "ddp_broadcast_buffers": _NO_DEEPSPEED,
    "ddp_static_graph": _NO_DEEPSPEED,
    "ddp_backend": Needs(
        "several processes, and no --deepspeed",
        lambda flags: int(os.environ.get("WORLD_SIZE", "1")) > 1 and not flags["deepspeed"],
    ),
    "ddp_timeout": ACTS,
    "fsdp": _SHARDING,
    "fsdp_config": _SHARDING,
    "deepspeed": ACTS,
    "debug": Needs(
        "underflow_overflow as its value (the other is for TPUs)",
        lambda flags: all(option == "underflow_overflow" for option in flags["debug"]),
    ),
    "skip_memory_metrics": ACTS,
    "do_train": Refused("this program always trains; --dry_run True ends before training"),
    "do_eval": _EVAL_DATA,
    "do_predict": Refused("this program only trains"),
    "resume_from_checkpoint": ACTS,
    "local_rank": ACTS,  # launchers pass it, and the environment holds the same value
    # Ours.
    "cache_dir": ACTS,
    "model_max_length": ACTS,
    "mm_projector_lr": Needs("--tune_mm_mlp True (the merger is frozen)", lambda flags: flags["tune_mm_mlp"]),
    "vision_tower_lr": Needs("--tune_mm_vision True (the encoder is frozen)", lambda flags: flags["tune_mm_vision"]),
    "lora_enable": Needs("--tune_mm_llm True (the language model is frozen)", lambda flags: flags["tune_mm_llm"]),
    "lora_r": _LORA,
    "lora_alpha": _LORA,
    "lora_dropout": _LORA,
    "lora_target_modules": _LORA,
    "warmup_ratio": _WARMUP,
    "dry_run": ACTS,
    "samples_per_step": ACTS,
    # Of the other groups, what has a condition that is not checked with its group.
    "max_bad_samples": Needs("--bad_sample_policy skip", lambda flags: flags["bad_sample_policy"] == "skip"),
}

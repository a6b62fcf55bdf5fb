"""Compare a run's flags with those of the run that wrote a checkpoint: which may differ, which are refused."""

import enum
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenvl.errors import UserError
from qwenvl.model.arguments import CUSTOM_VISION_FLAGS
from qwenvl.utils.json_text import read_json
from qwenvl.vision.trust import FILE_FORM, encoder_file

logger = logging.getLogger(__name__)


class Rule(enum.Enum):
    """How a flag may change when a run is continued."""

    EQUAL = "must be as it was"
    EQUAL_ONCE_SET = "must be as it was, unless it was not set"
    STEP = "may change if a step still takes the same samples"
    RATE = "takes effect and is logged, where the schedule is a function of the step"
    LOGGED = "takes effect and is logged"
    FREE = "does not change what is learned"


# Every flag has its rule. It is the same run only with equal model, trainable parts, samples and order.
_FLAGS: dict[Rule, tuple[str, ...]] = {
    Rule.EQUAL: (
        *("model_name_or_path", "frozen_weights"),
        *("tune_mm_llm", "tune_mm_mlp", "tune_mm_vision"),
        *("lora_enable", "lora_r", "lora_alpha", "lora_target_modules"),
        *("custom_vision_encoder", "vision_merger_path", *CUSTOM_VISION_FLAGS),
        *("dataset_use", "data_flatten", "data_packing", "model_max_length", "seed", "data_seed"),
        *("max_pixels", "min_pixels", "video_fps", "video_max_frames", "video_min_frames"),
        *("video_max_pixels", "video_min_pixels"),
        *("optim", "optim_args", "optim_target_modules", "average_tokens_across_devices"),
        *("bf16", "fp16", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config"),
    ),
    Rule.EQUAL_ONCE_SET: ("metric_for_best_model", "greater_is_better"),
    Rule.STEP: ("per_device_train_batch_size", "gradient_accumulation_steps", "samples_per_step"),
    Rule.RATE: (
        *("learning_rate", "mm_projector_lr", "vision_tower_lr"),
        *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    ),
    Rule.LOGGED: (
        *("max_steps", "num_train_epochs", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "lora_dropout", "neftune_noise_alpha", "ignore_data_skip"),
        *("attn_implementation", "tf32", "full_determinism", "use_liger_kernel", "liger_kernel_config"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode", "deepspeed"),
        *("eval_dataset_use", "eval_strategy", "eval_steps", "eval_delay", "load_best_model_at_end"),
        *("save_strategy", "save_steps", "bad_sample_policy", "max_image_megapixels"),
    ),
    Rule.FREE: (
        # Where things are read and written, and how much is kept.
        *("output_dir", "cache_dir", "media_cache_dir", "cache_vision_features", "save_total_limit"),
        *("resume_from_checkpoint", "dry_run", "do_train", "do_eval", "do_predict", "max_bad_samples"),
        "warmup_ratio",  # becomes warmup_steps
        *("thinking_turns", "trust_remote_code"),  # compared by the samples themselves; permits code, changes no result
        # What is logged, and to which tracker.
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"),
        *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "debug"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics"),
        *("include_num_input_tokens_seen", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"),
        *("hub_strategy", "hub_always_push", "hub_revision"),
        # How fast it goes and how much memory it takes.
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
        *("activation_checkpointing_kwargs", "use_cache", "torch_empty_cache_steps", "use_cpu", "local_rank"),
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("ddp_backend", "ddp_timeout", "enable_jit_checkpoint"),
        # How an evaluation is computed.
        *("per_device_eval_batch_size", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches"),
        *("eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"),
        *("bf16_full_eval", "fp16_full_eval"),
        # Refused by `check_arguments`, or set by this program.
        *("label_smoothing_factor", "train_sampling_strategy", "dataloader_drop_last", "auto_find_batch_size"),
        *("save_on_each_node", "save_only_model", "remove_unused_columns", "label_names", "length_column_name"),
        "restore_callback_states_from_checkpoint",
    ),
}
RULES: dict[str, Rule] = {name: rule for rule, names in _FLAGS.items() for name in names}

# Values of flags in runs recorded before the flag existed.
_BEFORE_THE_FLAG = {"frozen_weights": "bf16"}
# Schedules that keep their own rates: what they have made of the old flags cannot be carried over to new ones.
_OWN_RATES = ("reduce_lr_on_plateau", "greedy")
_STEP_SIZE = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")


def check_same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` if the flags of a run do not fit those of the checkpoint, and log changes that take effect.

    `before` are the arguments in the checkpoint's run_arguments.json, `now` are this run's. Flags that are recorded on
    one side only are not compared, except those of `_BEFORE_THE_FLAG`.
    """
    before = _BEFORE_THE_FLAG | dict(before)
    # Not the values that took effect: they follow from the flags and the machine.
    compared = (before.keys() & now.keys()) - {"effective"}
    changed = {name for name in compared if not _are_equal(before[name], now[name])}
    if "data" in before:
        changed.discard("dataset_use")  # `check_same_data` compares the contents, wherever the files are
    for name, rule in RULES.items():
        if name in changed and (rule is Rule.EQUAL or (rule is Rule.EQUAL_ONCE_SET and before[name] is not None)):
            raise _refusal(folder, name, before, now)
        own_rates = now["lr_scheduler_type"] in _OWN_RATES or before.get("lr_scheduler_type") in _OWN_RATES
        if name in changed and rule is Rule.RATE and own_rates:
            raise _refusal(folder, name, before, now)
    if now.get("samples_per_step") is None:
        check_same_step(folder, before, now)
    else:  # how many micro-batches make a step, the data will decide
        changed -= set(_STEP_SIZE)
    logged = [name for name, rule in RULES.items() if rule in (Rule.STEP, Rule.RATE, Rule.LOGGED) and name in changed]
    if logged:
        changes = ", ".join(f"--{name} {before[name]} -> {now[name]}" for name in logged)
        logger.info("continued with other flags, which take effect from here on: %s", changes)


def _are_equal(before: Any, now: Any) -> bool:
    """Whether two values of a flag are equal; two paths of one folder, or of one encoder file, are."""
    if before == now or not (isinstance(before, str) and isinstance(now, str)):
        return bool(before == now)
    if FILE_FORM in before and FILE_FORM in now:
        same_class = before.rpartition(":")[2] == now.rpartition(":")[2]
        return same_class and encoder_file(before) == encoder_file(now)
    return os.path.exists(before) and os.path.exists(now) and os.path.samefile(before, now)


def _refusal(folder: Path, name: str, before: Mapping[str, Any], now: Mapping[str, Any], why: str = "") -> UserError:
    flag = name if name == "world_size" else f"--{name}"
    return UserError(
        f"--resume_from_checkpoint {folder}: that run had {flag} {before[name]}, this one has {now[name]}{why}; give "
        "the same, or start a new run in another folder"
    )


def check_same_step(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` for another division of a step into batches and processes, unless the step stays the same.

    Packs are planned for all processes together, so a step that is divided differently still takes the same packs and
    only adds them up in another order. That holds as long as no process draws its own random numbers.
    """
    names = [name for name in _STEP_SIZE if name in before and before[name] != now[name]]
    if not names:
        return
    packs_before, packs_now = (math.prod(arguments[name] for name in _STEP_SIZE) for arguments in (before, now))
    if packs_before != packs_now:
        unit = "packs" if now["data_packing"] else "samples"
        why = (
            f" ({packs_before} {unit} a step then, {packs_now} now: batch size x accumulation x processes must stay "
            "the same)"
        )
        micro_batch = packs_now // now["gradient_accumulation_steps"]
        if now.get("samples_per_step") is not None and packs_before % micro_batch == 0:
            why += (
                f": without --samples_per_step, --gradient_accumulation_steps {packs_before // micro_batch} makes them "
                "the same"
            )
        raise _refusal(folder, names[0], before, now, why)
    obstacles = {
        "DeepSpeed's checkpoints are partitioned for one number of processes": "world_size" in names
        and now.get("zero_stage") is not None,
        "--lora_dropout is drawn in each process": now["lora_dropout"] or before.get("lora_dropout"),
        "--neftune_noise_alpha is drawn in each process": now["neftune_noise_alpha"] is not None,
        "--average_tokens_across_devices is False": not now["average_tokens_across_devices"],
        "a trained custom encoder may draw random numbers": now["tune_mm_vision"] and _has_custom_encoder(folder),
    }
    for obstacle, applies in obstacles.items():
        if applies:
            raise _refusal(folder, names[0], before, now, f", and {obstacle}")
    if "world_size" in names:
        logger.info(
            "continued on %d processes, %d before: a step takes the same samples, summed in another order",
            now["world_size"],
            before["world_size"],
        )


def _has_custom_encoder(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and "encoder" in read_json(config).get("vision_config", {})

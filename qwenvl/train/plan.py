"""Log the plan of a run before it starts: samples, steps and estimated memory."""

import logging
import math

import torch
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from qwenvl.data.data_processor import DataModule
from qwenvl.data.summary import DataSummary, summarize
from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, TrainingArguments
from qwenvl.train.memory import Sharding, estimate_total, memory_table
from qwenvl.utils.distributed import any_process
from qwenvl.utils.tables import format_table

logger = logging.getLogger(__name__)

# The estimate of the memory may be a few per cent too low.
SAFE_SHARE_OF_MEMORY = 0.92
# Compiling takes about a minute, and a compiled step saves about 0.4 seconds.
STEPS_WORTH_COMPILING = 200
# With fewer steps a schedule with a warmup hardly gets beyond it.
FEW_STEPS = 100


def summarize_batches(data: DataModule, data_args: DataArguments) -> DataSummary:
    """Count what the batches of a run hold."""
    padded = not (data_args.data_flatten or data_args.data_packing)
    return summarize(data.train_dataset, data.train_sampler, padded)


def report_plan(
    model: nn.Module,
    data: DataModule,
    summary: DataSummary,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Log samples, batches, steps and tokens per step of a run, and its estimated GPU memory."""
    if data_args.data_packing and data_args.data_flatten:
        logger.info("--data_packing and --data_flatten: samples are packed, which makes flat rows as well")
    if training_args.max_steps > 0 and training_args.num_train_epochs != TrainingArguments.num_train_epochs:
        logger.info(
            "--max_steps %d ends the run, not --num_train_epochs %g",
            training_args.max_steps,
            training_args.num_train_epochs,
        )
    rows = memory_table(model, summary, training_args, _sharding(training_args))
    logger.info("the plan:\n%s", format_table(_plan_table(summary, data, training_args)))
    logger.info("an estimate of the memory:\n%s", format_table(rows))


def checkpoint_if_needed(
    model: nn.Module,
    summary: DataSummary,
    training_args: TrainingArguments,
    free: float | None,
) -> None:
    """Switch gradient checkpointing on for "auto" where the activations do not fit, and log why or why not.

    `free` is the GPU memory in GiB, None without a GPU.
    """
    if not training_args.checkpoints_if_needed or free is None:
        return
    needed = estimate_total(model, summary, training_args, _sharding(training_args))
    # All processes alike: a step takes as long as its slowest process.
    if any_process(needed > free * SAFE_SHARE_OF_MEMORY, training_args.device):
        training_args.checkpoint_activations()
        reason = "layers' activations are recomputed"
    else:
        reason = "all activations are kept"
    logger.info(
        "--gradient_checkpointing auto: %s, because without recomputing a run takes about %.1f GiB of the GPU's %.1f",
        reason,
        needed,
        free,
    )


def free_memory_gib(device: torch.device) -> float | None:
    """Return the GPU memory that other programs leave to this process, in GiB; None for another device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / 2**30


def plan_steps(data: DataModule, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Settle what depends on the number of samples: accumulation, compilation, and what a run of few steps logs."""
    micro_batches = len(data.train_sampler)
    accumulate_samples(sum(map(len, data.train_dataset.packs)), micro_batches, training_args)
    _, steps = count_steps(micro_batches, training_args)
    compile_if_it_pays(steps, training_args, on_gpu=training_args.device.type == "cuda")
    adapt_to_few_steps(micro_batches, data_args, training_args)


def accumulate_samples(samples: int, micro_batches: int, training_args: TrainingArguments) -> None:
    """Set `gradient_accumulation_steps` so that a step reads about `--samples_per_step` samples, if that is given.

    `samples` are those of an epoch in all processes, `micro_batches` those of one process.
    """
    wanted = training_args.samples_per_step
    if wanted is None:
        return
    steps = micro_batches_per_step(samples, micro_batches, training_args)
    training_args.gradient_accumulation_steps = steps
    if training_args.deepspeed_plugin is not None:
        # Filled in when the flags were parsed, before the data were known.
        config = training_args.deepspeed_plugin.hf_ds_config.config
        micro_batch = training_args.world_size * training_args.per_device_train_batch_size
        config |= {"gradient_accumulation_steps": steps, "train_batch_size": micro_batch * steps}
    found = samples / micro_batches * steps
    if training_args.process_index == 0:
        level = logging.WARNING if found > 1.5 * wanted else logging.INFO
        logger.log(
            level,
            "--samples_per_step %d: a step has %d of an epoch's %d micro-batches, %.1f samples on average",
            wanted,
            steps,
            micro_batches,
            found,
        )


def micro_batches_per_step(samples: int, micro_batches: int, training_args: TrainingArguments) -> int:
    """Return the micro-batches of a step: as many as are asked for, or as have about `--samples_per_step` samples.

    No more than an epoch has, because a step ends with it.
    """
    if training_args.samples_per_step is None:
        return training_args.gradient_accumulation_steps
    return min(max(1, round(training_args.samples_per_step * micro_batches / samples)), micro_batches)


def compile_if_it_pays(steps: int, training_args: TrainingArguments, *, on_gpu: bool) -> None:
    """Switch `torch_compile` on for "auto" if a run of so many steps wins by it, and log why or why not."""
    if not training_args.compiles_if_it_pays:
        return
    plugin = training_args.deepspeed_plugin
    if not on_gpu:
        reason = "there is no GPU"
    elif steps < STEPS_WORTH_COMPILING:
        reason = f"a run of {steps} steps is over before the minute that it takes is won back"
    elif plugin is not None and plugin.zero_stage == 3:
        reason = "DeepSpeed ZeRO-3 fetches weights between the layers' operations"
    else:
        training_args.torch_compile, training_args.torch_compile_backend = True, "inductor"
        logger.info("--torch_compile auto: layers are compiled, which takes a minute at the first step")
        return
    logger.info("--torch_compile auto: layers are not compiled, because %s", reason)


def count_steps(micro_batches: int, training_args: TrainingArguments) -> tuple[int, int]:
    """Return the steps of an epoch and of the run, from the number of micro-batches of an epoch."""
    steps_per_epoch = math.ceil(micro_batches / training_args.gradient_accumulation_steps)
    if training_args.max_steps > 0:
        return steps_per_epoch, training_args.max_steps
    return steps_per_epoch, math.ceil(steps_per_epoch * training_args.num_train_epochs)


def adapt_to_few_steps(micro_batches: int, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Warn if a run has few steps without `--max_steps`, and log each step of a run that would log none.

    `micro_batches` are those of an epoch. Lowers `training_args.logging_steps` if it exceeds the number of steps.
    Raises `UserError` if the best model is to be kept, and the run ends before its first evaluation or checkpoint.
    """
    steps_per_epoch, steps = count_steps(micro_batches, training_args)
    if training_args.load_best_model_at_end or training_args.save_strategy == SaveStrategy.BEST:
        _check_best_model_is_found(steps, steps / steps_per_epoch, training_args)
    is_first = training_args.process_index == 0
    if training_args.max_steps <= 0 and steps < FEW_STEPS and is_first:
        number = "1 step" if steps == 1 else f"{steps} steps"
        remedies = ", or ".join(_ways_to_more_steps(data_args, training_args))
        logger.warning("this run has only %s, and several hundred are usual: %s", number, remedies)
    if training_args.logging_strategy == IntervalStrategy.STEPS and training_args.logging_steps > steps:
        if is_first:
            logger.info(
                "--logging_steps %g exceeds the run's %d: each step is logged", training_args.logging_steps, steps
            )
        training_args.logging_steps = 1


def _check_best_model_is_found(steps: int, epochs: float, training_args: TrainingArguments) -> None:
    by_epoch = training_args.eval_strategy == IntervalStrategy.EPOCH
    ends = {"eval_delay": (epochs, "epochs") if by_epoch else (steps, "steps")}
    for flag, strategy in (("eval_steps", "eval_strategy"), ("save_steps", "save_strategy")):
        if getattr(training_args, strategy) == "steps":
            ends[flag] = (steps, "steps")
    for flag, (end, unit) in ends.items():
        if getattr(training_args, flag) > end:
            raise UserError(
                f"--{flag} {getattr(training_args, flag):g} exceeds the run's {end:g} {unit}, so no best model would "
                "be found; lower it, or leave out --load_best_model_at_end and --save_strategy best"
            )


def _ways_to_more_steps(data_args: DataArguments, training_args: TrainingArguments) -> list[str]:
    """Return the flags to change, each with its variable in scripts/train.sh."""
    ways = ["raise --num_train_epochs (EPOCHS)"]
    if training_args.samples_per_step is not None:
        ways.append(f"lower --samples_per_step {training_args.samples_per_step} (SAMPLES_PER_STEP)")
    for flag, variable in (
        ("gradient_accumulation_steps", "GRAD_ACCUM"),
        ("per_device_train_batch_size", "BATCH_SIZE"),
    ):
        if getattr(training_args, flag) > 1:
            ways.append(f"lower --{flag} {getattr(training_args, flag)} ({variable})")
    if data_args.data_packing:
        ways.append(f"lower --model_max_length {training_args.model_max_length} (MODEL_MAX_LENGTH), the size of a pack")
    return ways


def _plan_table(summary: DataSummary, data: DataModule, training_args: TrainingArguments) -> list[tuple[str, ...]]:
    steps_per_epoch, steps = count_steps(summary.micro_batches, training_args)
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

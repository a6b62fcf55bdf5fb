"""Train a model: from the command line to a trained model in the output folder."""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run by path, as torchrun does: Python has put this folder on its path, not the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from qwenvl.errors import UserError, exit_on_user_error, exit_unless_installed
from qwenvl.utils.startup import answer_help_without_collection

if __name__ == "__main__":  # importing PyTorch takes seconds: until main runs, Ctrl-C ends the program silently
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    exit_unless_installed("torch", "transformers", "peft")
    answer_help_without_collection()
    if {"-h", "--help"} & set(sys.argv):  # needs the flags alone, and the imports below take seconds
        from qwenvl.train.argument import parse_arguments

        with exit_on_user_error():
            parse_arguments()

import huggingface_hub
import torch
import transformers
from transformers import TrainerCallback, set_seed

from qwenvl.checkpoint.lock import release_output_dirs
from qwenvl.checkpoint.resume import check_encoder, check_same_data, find_resume_checkpoint
from qwenvl.checkpoint.savable import check_savable
from qwenvl.checkpoint.save import prepare_output_dir, run_arguments
from qwenvl.checkpoint.select import check_start_folders
from qwenvl.data.data_processor import DataModule
from qwenvl.model.build import build_model
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments, check_arguments, parse_arguments
from qwenvl.train.features import cache_features
from qwenvl.train.optimizers import check_optimizer
from qwenvl.train.param_groups import component_table
from qwenvl.train.plan import (
    checkpoint_if_needed,
    free_memory_gib,
    plan_steps,
    report_plan,
    summarize_batches,
)
from qwenvl.train.prepare import BasePlan, prepare
from qwenvl.train.record import describe_effect, describe_processes, describe_samples
from qwenvl.train.run import build_trainer, end_data_workers, run
from qwenvl.train.signals import SIGNAL_EXIT_CODE, STOP_SIGNALS, handle, watch_launcher
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils import logs
from qwenvl.utils.distributed import exit_at_once_after_leaving, leave_together

# Not __name__, which is __main__ when the file is run by path.
logger = logging.getLogger("qwenvl.train.train_qwen")

SECONDS_FOR_THE_LAUNCHER = 10


@release_output_dirs()
def train(argv: list[str] | None = None, callbacks: Sequence[TrainerCallback] = ()) -> QwenVLTrainer | None:
    """Train a model by the flags of the command line, and return its trainer (None after a dry run)."""
    model_args, data_args, training_args = parse_arguments(argv)
    configure_logging(training_args)
    check_run(model_args, data_args, training_args)
    arguments = run_arguments(model_args, data_args, training_args) | describe_processes(training_args)
    resume_from = claim_output_dir(training_args, arguments)
    set_seed(training_args.seed)
    prepared = prepare(model_args, data_args, training_args)
    log_own_warnings()
    plan_steps(prepared.data, data_args, training_args)
    arguments |= describe_samples(prepared.data) | describe_effect(prepared, training_args)
    check_data(prepared.data, arguments, resume_from, model_args)
    model = build_checked_model(model_args, training_args, prepared.base, resume_from)
    summary = summarize_batches(prepared.data, data_args)
    checkpoint_if_needed(model, summary, training_args, free_memory_gib(training_args.device))
    report_plan(model, prepared.data, summary, data_args, training_args)
    if model_args.cache_vision_features:
        cache_features(model, prepared.data, model_args.cache_vision_features, data_args, training_args)
    if training_args.dry_run:
        logger.info("a dry run: nothing was trained")
        return None
    trainer = build_trainer(model, prepared.base.processor, prepared.data, training_args, arguments, callbacks)
    run(trainer, training_args.output_dir, resume_from)
    return trainer


def configure_logging(training_args: TrainingArguments) -> None:
    """Log at INFO in the main process and at ERROR in the others."""
    main = training_args.process_index == 0
    in_terminal = sys.stderr.isatty()
    logs.configure_logging(logging.INFO if main else logging.ERROR)
    if not main:
        transformers.logging.set_verbosity_error()
    if not main or not in_terminal:
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()


def log_own_warnings() -> None:
    """Let every process log its warnings from here on; those about the data, which all share, are logged by now."""
    package = logging.getLogger("qwenvl")
    package.setLevel(min(package.level, logging.WARNING))


def check_run(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise `UserError` for flags that contradict each other, this machine, or the folders to start from."""
    check_arguments(model_args, data_args, training_args)
    check_optimizer(training_args, training_args.component_learning_rates)
    check_start_folders(model_args)


def claim_output_dir(training_args: TrainingArguments, arguments: dict[str, Any]) -> str | None:
    """Lock the output folder for this run; return the checkpoint to continue from, None for a new run."""
    output_dir, resume = training_args.output_dir, training_args.resume_from_checkpoint
    prepare_output_dir(output_dir, resume, dry_run=training_args.dry_run)
    return find_resume_checkpoint(output_dir, resume, arguments)


def check_data(
    data: DataModule,
    arguments: dict[str, Any],
    resume_from: str | None,
    model_args: ModelArguments,
) -> None:
    """Raise `UserError` if the samples are not those of the continued run, or lack media for a trained part."""
    if resume_from is not None:
        check_same_data(resume_from, arguments)
    check_media(model_args, data)


def build_checked_model(
    model_args: ModelArguments, training_args: TrainingArguments, base: BasePlan, resume_from: str | None
) -> torch.nn.Module:
    """Build the model, check that it can be saved and matches the checkpoint, and log what is trained."""
    model = build_model(model_args, training_args, base.vision_config, without_weights=training_args.dry_run)
    check_savable(model)
    if resume_from is not None and not training_args.dry_run:
        check_encoder(resume_from, model)
    table = component_table(model, training_args.component_learning_rates, training_args.weight_decay)
    logger.info("what is trained:\n%s", table)
    return model


def check_media(model_args: ModelArguments, data: DataModule) -> None:
    """Raise `UserError` if parts that only process images and videos are to be trained on text alone."""
    for switch in ("tune_mm_mlp", "tune_mm_vision"):
        if getattr(model_args, switch) and not data.train_dataset.media_kinds():
            raise UserError(
                f"--{switch} True, but no sample of --dataset_use has an image or a video, so it would not be trained; "
                f"set --{switch} False"
            )


def main(callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Run the program: a user's mistake ends in one line and exit code 2, Ctrl-C in one line and 130."""
    handle(signal.SIGINT, signal.default_int_handler)
    watch_launcher()
    atexit.register(exit_at_once_after_leaving)
    with exit_on_user_error():
        try:
            train(callbacks=callbacks)
            for each in STOP_SIGNALS:  # everything is written: nothing is left to stop
                signal.signal(each, signal.SIG_IGN)
            leave_together()
        except KeyboardInterrupt:
            end_data_workers()
            handle(signal.SIGINT, signal.SIG_DFL)  # a second one does not wait for Python's exit handlers
            if os.environ.get("RANK", "0") == "0":
                sys.stderr.write(
                    "stopped by Ctrl-C: the steps after the last checkpoint are lost; SIGTERM saves first\n"
                )
            raise SystemExit(SIGNAL_EXIT_CODE + signal.SIGINT) from None
        except BaseException as error:
            end_data_workers()
            if is_loss_of_another_process(error):
                time.sleep(SECONDS_FOR_THE_LAUNCHER)  # it terminates this process; the other one has reported the cause
            raise


def is_loss_of_another_process(error: BaseException) -> bool:
    """Whether an error only reports that another process of the run ended during a collective."""
    text = str(error)
    return isinstance(error, RuntimeError) and "gloo" in text and ("closed by peer" in text or "reset by peer" in text)


if __name__ == "__main__":
    main()

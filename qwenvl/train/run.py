"""Run the training loop: build the trainer, train, publish the model and evaluate its last step."""

import copy
import logging
import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from qwenvl.checkpoint.save import INCOMPLETE, CommitCheckpoints, clear_incomplete, publish_files, write_state
from qwenvl.data.data_processor import DataModule
from qwenvl.data.workers import explain_dead_workers
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.callbacks import (
    EvaluateAfterSaving,
    EvaluationStoppedError,
    LogLines,
    ProgressLines,
    StopOnSigterm,
)
from qwenvl.train.continuation import prepare_continuation
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils.distributed import barrier

logger = logging.getLogger(__name__)


def build_trainer(
    model: torch.nn.Module,
    processor: transformers.ProcessorMixin,
    data: DataModule,
    training_args: TrainingArguments,
    arguments: dict,
    callbacks: Sequence[TrainerCallback] = (),
) -> QwenVLTrainer:
    """Connect model, data and callbacks; the Trainer writes into `.incomplete`, beside the finished checkpoints."""
    output_dir = training_args.output_dir
    callbacks = [EvaluateAfterSaving(), *callbacks]
    trainer_args = copy.copy(training_args)
    trainer_args.output_dir = str(Path(output_dir) / INCOMPLETE)
    trainer_args.torch_compile = False  # the layers are compiled already
    trainer_args.torch_compile_backend = None
    trainer_args.report_to = [name for name in training_args.report_to if name != "tensorboard"]
    if training_args.process_index == 0:
        clear_incomplete(output_dir)
        if "tensorboard" in training_args.report_to:
            runs = Path(output_dir) / "runs" / run_folder(training_args.run_name)
            callbacks.append(TensorBoardCallback(SummaryWriter(str(runs))))
    trainer = QwenVLTrainer(
        model=model,
        args=trainer_args,
        processing_class=processor,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        data_collator=data.data_collator,
        train_sampler=data.train_sampler,
        eval_sampler=data.eval_sampler,
        bad_samples=data.bad_samples,
        normalize_pixels=data.defer_normalization(),
        run_arguments=arguments,
        checkpoints=CommitCheckpoints(output_dir),
        callbacks=callbacks,
    )
    for replaced in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(replaced)
    with_bar = sys.stderr.isatty() and not training_args.disable_tqdm
    trainer.add_callback(ProgressLines() if with_bar else LogLines())
    return trainer


def run_folder(run_name: str | None) -> str:
    """Return a name for a run's TensorBoard folder: its start time and `--run_name`."""
    started = time.strftime("%Y%m%d-%H%M%S")
    return started if not run_name else "-".join([started, re.sub(r"[^\w.-]", "_", run_name)])


def run(trainer: QwenVLTrainer, output_dir: str, resume_from: str | None) -> None:
    """Train, publish the model into the output folder, and evaluate its last step."""
    with StopOnSigterm() as stop:
        trainer.add_callback(stop)
        if resume_from is not None:
            prepare_continuation(trainer, output_dir, resume_from)
        try:
            with explain_dead_workers(trainer.args.dataloader_num_workers):
                trainer.train(resume_from_checkpoint=resume_from)
        except BaseException:
            end_data_workers()
            raise
        if stop.stopped:
            logger.info(
                "stopped by %s after step %d; the checkpoint is saved: continue with the same command and "
                "--resume_from_checkpoint auto",
                stop.signal_name,
                trainer.state.global_step,
            )
            return
        publish(trainer, output_dir)
        stop.is_published = True
        try:
            evaluate_last_step(trainer, output_dir)
        except EvaluationStoppedError:
            logger.info("stopped by %s: the last step is trained and saved, but not evaluated", stop.signal_name)


def evaluate_last_step(trainer: QwenVLTrainer, output_dir: str) -> None:
    """Evaluate the trained model unless its last step has been evaluated, and record the scores."""
    last_evaluated = max((entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry), default=-1)
    if trainer.eval_dataset is None or last_evaluated == trainer.state.global_step:
        return
    with explain_dead_workers(trainer.args.dataloader_num_workers):
        trainer.evaluate()
    if trainer.is_world_process_zero():
        write_state(Path(output_dir), trainer.state, Path(trainer.args.output_dir))


def publish(trainer: QwenVLTrainer, output_dir: str) -> None:
    """Put the trained model into the output folder."""
    finished = Path(trainer.args.output_dir) / "final"
    trainer.save_model(str(finished))
    barrier()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(finished / "trainer_state.json"))
        publish_files(finished, Path(output_dir))
        logger.info("the trained model is in %s", output_dir)


def end_data_workers() -> None:
    """Kill the data workers of a failed run: they ignore SIGTERM, and Python would wait for them at exit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # PyTorch's handler would raise an error for each killed worker:
    # https://github.com/pytorch/pytorch/blob/v2.11.0/torch/utils/data/_utils/signal_handling.py#L54
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()

"""Owns the run: from the command line to a trained model in the output folder."""

import atexit
import copy
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

if not __package__:  # run by path, as torchrun does: Python has put this folder on its path, not the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from qwenvl.errors import UserError, exit_on_user_error, exit_unless_installed

if __name__ == "__main__":  # PyTorch takes seconds: until main can say more, Ctrl-C ends the program without a word
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    exit_unless_installed("torch", "transformers", "peft")

import huggingface_hub
import torch
import transformers
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, ProgressCallback, set_seed
from transformers.integrations import TensorBoardCallback

from qwenvl.checkpoint.data_digest import describe_data
from qwenvl.checkpoint.lock import release_output_dirs
from qwenvl.checkpoint.resume import check_encoder, check_same_data, find_resume_checkpoint
from qwenvl.checkpoint.savable import check_savable
from qwenvl.checkpoint.save import (
    INCOMPLETE,
    CommitCheckpoints,
    clear_incomplete,
    prepare_output_dir,
    publish_files,
    run_arguments,
    write_state,
)
from qwenvl.checkpoint.select import check_start_folders
from qwenvl.data.data_processor import DataModule, make_supervised_data_module
from qwenvl.data.workers import explain_dead_workers
from qwenvl.model.attention import resolve_attention
from qwenvl.model.base_files import refuse_broken_weights, refuse_other_processor
from qwenvl.model.build import build_model, load_config, load_processor
from qwenvl.model.custom_vision import plan_custom_vision
from qwenvl.train.argument import ModelArguments, TrainingArguments, check_arguments, parse_arguments
from qwenvl.train.callbacks import (
    EvaluateAfterSaving,
    EvaluationStoppedError,
    LogLines,
    ProgressLines,
    StopOnSigterm,
)
from qwenvl.train.continuation import prepare_continuation
from qwenvl.train.features import cache_features, check_feature_cache
from qwenvl.train.optimizers import check_optimizer
from qwenvl.train.param_groups import component_table
from qwenvl.train.plan import heed_few_steps, report_plan
from qwenvl.train.signals import SIGNAL_EXIT_CODE, STOP_SIGNALS, handle, watch_launcher
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils import logs
from qwenvl.utils.distributed import barrier, exit_at_once_after_leaving, leave_together
from qwenvl.vision import swap_processor

# Not __name__, which is __main__ when the file is run by path.
logger = logging.getLogger("qwenvl.train.train_qwen")

SECONDS_FOR_THE_LAUNCHER = 10


@release_output_dirs()
def train(argv: list[str] | None = None) -> QwenVLTrainer | None:
    """Train a model as the command line says, and return its trainer (None after a dry run)."""
    model_args, data_args, training_args = parse_arguments(argv)
    configure_logging(training_args)
    check_arguments(model_args, data_args, training_args)
    check_optimizer(training_args, training_args.component_learning_rates)
    arguments = run_arguments(model_args, data_args, training_args) | describe_processes(training_args)
    check_start_folders(model_args)
    base_config = load_config(
        model_args.model_name_or_path, training_args.cache_dir, trust_remote_code=model_args.trust_remote_code
    )
    if not training_args.dry_run:
        refuse_broken_weights(model_args.model_name_or_path)
    check_feature_cache(model_args, base_config)
    prepare_output_dir(training_args.output_dir, training_args.resume_from_checkpoint, dry_run=training_args.dry_run)
    resume_from = find_resume_checkpoint(training_args.output_dir, training_args.resume_from_checkpoint, arguments)
    set_seed(training_args.seed)
    processor = load_processor(
        model_args.model_name_or_path, training_args.cache_dir, trust_remote_code=model_args.trust_remote_code
    )
    refuse_other_processor(model_args.model_name_or_path, base_config, processor)
    vision_config = plan_custom_vision(model_args, base_config, processor)
    if vision_config is not None:
        processor = swap_processor(processor, vision_config)
    attention = resolve_attention(model_args.attn_implementation, training_args.half_precision)
    data = make_supervised_data_module(
        processor,
        data_args,
        training_args,
        varlen=attention.backend == "varlen",
        only_vision_is_trained=not model_args.tune_mm_llm,
    )
    # What every process has found in the data the first has told; what each finds while it trains it tells itself.
    logging.getLogger("qwenvl").setLevel(min(logging.getLogger("qwenvl").level, logging.WARNING))
    arguments |= describe_samples(data)
    if resume_from is not None:
        check_same_data(resume_from, arguments)
    check_media(model_args, data)
    heed_few_steps(len(data.train_sampler), data_args, training_args)
    model = build_model(model_args, training_args, vision_config, without_weights=training_args.dry_run)
    check_savable(model)
    if resume_from is not None and not training_args.dry_run:
        check_encoder(resume_from, model)
    table = component_table(model, training_args.component_learning_rates, training_args.weight_decay)
    logger.info("what is trained:\n%s", table)
    report_plan(model, data, data_args, training_args)
    if model_args.cache_vision_features:
        cache_features(model, data, model_args.cache_vision_features, data_args, training_args)
    if training_args.dry_run:
        logger.info("a dry run: nothing was trained")
        return None
    trainer = build_trainer(model, processor, data, training_args, arguments)
    run(trainer, training_args.output_dir, resume_from)
    return trainer


def describe_processes(training_args: TrainingArguments) -> dict:
    """Return what a checkpoint has to say of the processes that wrote it."""
    plugin = training_args.deepspeed_plugin
    return {"world_size": training_args.world_size, "zero_stage": None if plugin is None else plugin.zero_stage}


def describe_samples(data: DataModule) -> dict:
    """Return what a checkpoint has to say of the samples for training and for evaluation."""
    evaluation = None if data.eval_dataset is None else describe_data(data.eval_dataset)
    return {"data": describe_data(data.train_dataset), "eval_data": evaluation}


def check_media(model_args: ModelArguments, data: DataModule) -> None:
    """Raise `UserError` if parts that only pictures reach are to be trained on text alone."""
    for switch in ("tune_mm_mlp", "tune_mm_vision"):
        if getattr(model_args, switch) and not data.train_dataset.media_kinds():
            raise UserError(
                f"--{switch} True, but no sample of --dataset_use has an image or a video, so it would not be trained; "
                f"set --{switch} False"
            )


def configure_logging(training_args: TrainingArguments) -> None:
    """Let the main process tell what it does, and the others only what goes wrong."""
    main = training_args.process_index == 0
    in_terminal = sys.stderr.isatty()
    logs.configure_logging(logging.INFO if main else logging.ERROR)
    if not main:
        transformers.logging.set_verbosity_error()
    if not main or not in_terminal:
        transformers.logging.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()


def build_trainer(
    model: torch.nn.Module,
    processor: transformers.ProcessorMixin,
    data: DataModule,
    training_args: TrainingArguments,
    arguments: dict,
) -> QwenVLTrainer:
    """Wire model, data and callbacks together; the Trainer writes beside the output folder's finished checkpoints."""
    output_dir = training_args.output_dir
    callbacks = [EvaluateAfterSaving()]
    trainer_args = copy.copy(training_args)
    trainer_args.output_dir = str(Path(output_dir) / INCOMPLETE)
    trainer_args.torch_compile_backend = None  # the layers are compiled already
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
    """Return a new name for a run's folder of TensorBoard: its time, and what `--run_name` says."""
    started = time.strftime("%Y%m%d-%H%M%S")
    return started if not run_name else "-".join([started, re.sub(r"[^\w.-]", "_", run_name)])


def run(trainer: QwenVLTrainer, output_dir: str, resume_from: str | None) -> None:
    """Train, put the model into the output folder, and evaluate what the last step made."""
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
                "stopped by %s after step %d; the checkpoint is saved: go on with the same command and "
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
    """Evaluate the trained model, unless its last step has been evaluated, and record what is found."""
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
    """Let a run that fails end: Python waits at its exit for the data workers, which outlive a SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with PyTorch's handler, each worker's end would be another error
    for worker in multiprocessing.active_children():
        worker.kill()


def main() -> None:
    """Run as a program: a user's mistake ends in one line and exit code 2, Ctrl-C in one line and 130."""
    handle(signal.SIGINT, signal.default_int_handler)
    watch_launcher()
    atexit.register(exit_at_once_after_leaving)
    with exit_on_user_error():
        try:
            train()
            for each in STOP_SIGNALS:  # all is done and written: a signal has nothing to end any more
                signal.signal(each, signal.SIG_IGN)
            leave_together()
        except KeyboardInterrupt:
            end_data_workers()
            handle(signal.SIGINT, signal.SIG_DFL)  # a second one does not wait for what Python does at its exit
            if os.environ.get("RANK", "0") == "0":
                sys.stderr.write(
                    "stopped by Ctrl-C: what came after the last checkpoint is lost; SIGTERM saves first\n"
                )
            raise SystemExit(SIGNAL_EXIT_CODE + signal.SIGINT) from None
        except BaseException as error:
            end_data_workers()
            if is_loss_of_another_process(error):
                time.sleep(SECONDS_FOR_THE_LAUNCHER)  # it ends this process, too; the other one has told why
            raise


def is_loss_of_another_process(error: BaseException) -> bool:
    """Whether an error only says that another process of the run has gone away in the middle of an exchange."""
    text = str(error)
    return isinstance(error, RuntimeError) and "gloo" in text and ("closed by peer" in text or "reset by peer" in text)


if __name__ == "__main__":
    main()

"""Continue a run from a checkpoint: with its current flags, and no evaluation repeated or left out."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qwenvl.checkpoint.rollback import set_later_checkpoints_aside
from qwenvl.checkpoint.save import RUN_ARGUMENTS_NAME
from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils.distributed import barrier
from qwenvl.utils.json_text import read_json

logger = logging.getLogger(__name__)

# What an optimizer reads from its groups at each step, besides the learning rate.
_OPTIMIZER_OPTIONS = ("weight_decay", "betas", "eps")


class ContinueRun(TrainerCallback):
    """Apply the current flags to the state of a checkpoint after the Trainer has loaded it."""

    def __init__(self, trainer: QwenVLTrainer, output_dir: str, resume_from: str) -> None:
        self._trainer = trainer
        self._folders = (Path(output_dir), Path(resume_from).parent)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Apply the current flags to the loaded state, and evaluate its step if that is due."""
        # The Trainer keeps the logging, evaluation and save intervals of the run that wrote the checkpoint. Can go when
        # it computes them after loading the state: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L1697
        state.compute_steps(args, state.max_steps)
        find_best_checkpoint(state, self._folders)
        follow_flags(kwargs["optimizer"], kwargs["lr_scheduler"], self._trainer.optimizer_options)
        if evaluation_is_due(args, state):
            logger.info("step %d was saved but not evaluated yet", state.global_step)
            self._trainer.evaluate_this_step()


def prepare_continuation(trainer: QwenVLTrainer, output_dir: str, resume_from: str) -> None:
    """Make a trainer continue from a checkpoint: log the new end of its schedule, and set later checkpoints aside.

    Raises `UserError` if the checkpoint lies beyond the end.
    """
    state = TrainerState.load_from_json(str(Path(resume_from) / TRAINER_STATE_NAME))
    last = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    if state.global_step > last:
        raise UserError(
            f"--resume_from_checkpoint {resume_from} is at step {state.global_step}, but the run ends at step {last}; "
            "raise --max_steps or --num_train_epochs, or name an earlier checkpoint"
        )
    if last != state.max_steps:
        logger.info("the schedule now ends at step %s (%s before)", f"{last:,}", f"{state.max_steps:,}")
    if state.global_step == last:
        logger.info("step %s was the last one: nothing is left to train, even if flags have changed", f"{last:,}")
        # The model is published again, with the arguments that it was trained with.
        trainer.run_arguments = read_json(Path(resume_from) / RUN_ARGUMENTS_NAME)
    for is_in_charge in (trainer.is_world_process_zero(), trainer.is_local_process_zero()):
        # First the main process, then one process of each machine with its own disk.
        if is_in_charge:
            set_later_checkpoints_aside(output_dir, resume_from, state.global_step)
        barrier()
    trainer.args.eval_on_start = False  # it was done when the run started
    trainer.add_callback(ContinueRun(trainer, output_dir, resume_from))


def evaluation_is_due(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step to continue from should have been evaluated and was not: checkpoints are saved before."""
    if any(entry["step"] == state.global_step and "eval_loss" in entry for entry in state.log_history):
        return False
    control, flow = TrainerControl(), DefaultFlowCallback()
    flow.on_step_end(args, state, control)
    if state.global_step >= state.max_steps or float(state.epoch or 0.5).is_integer():
        flow.on_epoch_end(args, state, control)
    return control.should_evaluate


def find_best_checkpoint(state: TrainerState, folders: Sequence[Path]) -> None:
    """Look for a moved best checkpoint in the folders; drop its score if it no longer exists."""
    if state.best_global_step is None or state.best_model_checkpoint is not None:
        return
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
    found = next((folder / name for folder in folders if (folder / name).is_dir()), None)
    if found is not None:
        state.best_model_checkpoint = str(found)
        return
    logger.info("the best checkpoint so far, %s, no longer exists: the best of the later ones counts", name)
    state.best_metric = state.best_global_step = None


def follow_flags(
    optimizer: torch.optim.Optimizer, scheduler: LRScheduler, options: Sequence[Mapping[str, Any]]
) -> None:
    """Set the optimizer's groups to their `options` and the rates of the schedule, in place of the checkpoint's.

    `options` are those that the groups were created with; unchanged flags change nothing. A schedule that is not a
    function of the step keeps its rates: changed flags have been refused.
    """
    for group, fresh in zip(optimizer.param_groups, options, strict=True):
        group.update({name: fresh[name] for name in _OPTIMIZER_OPTIONS if name in fresh})
    if not isinstance(scheduler, LambdaLR):
        return
    rates = [fresh["lr"] for fresh in options]
    now = [rate * factor(scheduler.last_epoch) for rate, factor in zip(rates, scheduler.lr_lambdas, strict=True)]
    scheduler.load_state_dict(scheduler.state_dict() | {"base_lrs": rates, "_last_lr": now})
    for group, rate, first in zip(optimizer.param_groups, now, rates, strict=True):
        group.update({"lr": rate, "initial_lr": first})

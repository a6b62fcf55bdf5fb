"""Owns what happens around the steps of a run: stopping on SIGTERM, and the progress bar with its lines."""

import logging
import signal
from types import FrameType
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from qwenvl.train.argument import TrainingArguments
from qwenvl.train.distributed import any_process

logger = logging.getLogger(__name__)


class StopOnSigterm(TrainerCallback):
    """Finish the step, save and stop when any process of the run gets SIGTERM, as clusters send before they preempt."""

    def __init__(self) -> None:
        self.stopped = False
        self._signalled = False
        self._previous: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._previous = signal.signal(signal.SIGTERM, self._remember)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if any_process(self._signalled, args.device) and state.global_step < state.max_steps:  # else it ends by itself
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False  # time is short, and the resumed run does it
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:  # the Trainer takes a stop for the end of the epoch
            control.should_save = control.should_evaluate = False

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True


class EvaluateAfterSaving(TrainerCallback):
    """Put off the evaluation of an epoch's last step until the epoch's end, where `--save_strategy epoch` saves."""

    def __init__(self) -> None:
        self._put_off = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch_ends = state.epoch.is_integer() or control.should_training_stop
        if control.should_evaluate and args.save_strategy == SaveStrategy.EPOCH and epoch_ends:
            self._put_off, control.should_evaluate = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._put_off:
            self._put_off, control.should_evaluate = False, True


class ProgressLines(ProgressCallback):
    """Transformers' progress bar, with one short line for each entry of the log above it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            self.training_bar.write(f"step {state.global_step}: {log_line(logs)}")


def log_line(logs: dict[str, float]) -> str:
    """Return an entry of the log as one line: the words as they are logged, shares in per cent, rates in short."""
    words = []
    for name, value in logs.items():
        if name in ("epoch", "total_flos", "learning_rate") or not isinstance(value, int | float):
            continue
        label = name.removesuffix("_share").replace("_per_second", "/s").replace("_", " ")
        number = f"{value:.1%}" if name.endswith("_share") else f"{value:.4g}"
        words.append(f"{label} {number}")
    return ", ".join(words)

"""Callbacks of a run: stop on SIGTERM or SIGHUP, evaluate after saving, and log progress."""

import logging
import signal
from types import FrameType
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from qwenvl.train.argument import TrainingArguments
from qwenvl.train.signals import STOP_SIGNALS, handle, leave_dead_terminal
from qwenvl.utils.distributed import any_process

logger = logging.getLogger(__name__)


class EvaluationStoppedError(Exception):
    """A stop signal arrived during the evaluation of an already published model."""


class StopOnSigterm(TrainerCallback):
    """Finish the step, save and stop when any process of the run gets SIGTERM, as clusters send before preemption.

    SIGHUP, sent by a closing terminal, does the same unless it was ignored from the start (nohup). Ctrl-C
    ends the run at once, or at the end of the step where Python could not raise its `KeyboardInterrupt`.

    A context manager: the handlers are installed when training begins and stay until the context ends, so that a
    signal does not interrupt the writing of the trained model. Once `is_published` is set, a signal ends an evaluation
    by `EvaluationStoppedError`, in all processes at the same batch.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.is_published = False
        self.signal_name = signal.SIGTERM.name
        self._signalled = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopOnSigterm":
        return self

    def __exit__(self, *args: object) -> None:
        for each, previous in self._previous.items():
            # A run that is stopping will exit with 0: a second signal must not turn that into a failure.
            ignored = self._signalled and each in STOP_SIGNALS
            signal.signal(each, signal.SIG_IGN if ignored else previous or signal.SIG_DFL)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Install the handlers of SIGTERM, SIGHUP and SIGINT."""
        self._previous = {each: signal.getsignal(each) for each in (*STOP_SIGNALS, signal.SIGINT)}
        for each in STOP_SIGNALS:
            handle(each, self._note_signal)
        handle(signal.SIGINT, self._interrupt)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the handler of SIGINT: nothing is left that Ctrl-C would lose."""
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT) or signal.SIG_DFL)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a save and stop if any process got a signal, unless this was the last step."""
        if self._interrupted:
            raise KeyboardInterrupt
        if (
            any_process(self._signalled, args.device) and state.global_step < state.max_steps
        ):  # the last step ends the run anyway
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False  # left to the resumed run: the time before a kill is short
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Neither save nor evaluate again at the epoch's end when stopping."""
        # The Trainer treats a stop as the end of the epoch: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L1965
        if self.stopped:
            control.should_save = control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the evaluation of a published model if any process got a signal."""
        if self.is_published and any_process(self._signalled, args.device):
            raise EvaluationStoppedError

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        # Raised in a callback around a fork, as at each start of data workers, or in a finalizer, it would be
        # printed and ignored: https://docs.python.org/3.11/library/sys.html#sys.unraisablehook
        self._interrupted = True
        raise KeyboardInterrupt

    def _note_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True
        self.signal_name = signal.Signals(signum).name
        if signum == signal.SIGHUP:
            leave_dead_terminal()


class EvaluateAfterSaving(TrainerCallback):
    """Defer the evaluation of an epoch's last step to the epoch's end, where `--save_strategy epoch` saves."""

    def __init__(self) -> None:
        self._is_deferred = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Defer the evaluation of an epoch's last step if `--save_strategy epoch` will save after it."""
        epoch_ends = state.epoch.is_integer() or control.should_training_stop
        if control.should_evaluate and args.save_strategy == SaveStrategy.EPOCH and epoch_ends:
            self._is_deferred, control.should_evaluate = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Request the deferred evaluation."""
        if self._is_deferred:
            self._is_deferred, control.should_evaluate = False, True


class ProgressLines(ProgressCallback):
    """Transformers' progress bar, with one short line above it for each log entry."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the entry as one line above the progress bar."""
        if self.training_bar is not None and logs:
            self.training_bar.write(f"step {state.global_step}: {log_line(logs)}")


class LogLines(TrainerCallback):
    """One short line for each log entry, in place of a progress bar: in a file, or with `--disable_tqdm True`."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the entry as one line, in the main process."""
        if state.is_world_process_zero and logs:
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, log_line(logs))


def log_line(logs: dict[str, float]) -> str:
    """Return a log entry as one line: names without underscores, fractions in percent, per-second rates as `/s`."""
    parts = []
    for name, value in logs.items():
        if name in ("epoch", "total_flos", "learning_rate") or not isinstance(value, int | float):
            continue
        label = name.removesuffix("_share").replace("_per_second", "/s").replace("_", " ")
        number = f"{value:.1%}" if name.endswith("_share") else f"{value:.4g}"
        parts.append(f"{label} {number}")
    return ", ".join(parts)

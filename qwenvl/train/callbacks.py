"""Act around the steps of a run: stop on SIGTERM or SIGHUP, and tell how far it is."""

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
    """A signal to stop has come in an evaluation after which nothing is left to do."""


class StopOnSigterm(TrainerCallback):
    """Finish the step, save and stop when any process of the run gets SIGTERM, as clusters send before they preempt.

    SIGHUP, which a terminal sends that is closed, does the same, unless it was ignored from the start (nohup). Ctrl-C
    ends the run at once, or at the end of the step where Python could not raise its `KeyboardInterrupt`.

    A context manager: the handlers are installed when the training begins, and outlive it until the context ends, so
    that a signal does not cut off the writing of the trained model. Once `is_published` is set, a signal ends an
    evaluation by `EvaluationStoppedError`, in all processes at the same batch.
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
            # A run that was told to stop is about to end well: a second signal must not make that a failure.
            ignored = self._signalled and each in STOP_SIGNALS
            signal.signal(each, signal.SIG_IGN if ignored else previous or signal.SIG_DFL)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Act when training begins."""
        self._previous = {each: signal.getsignal(each) for each in (*STOP_SIGNALS, signal.SIGINT)}
        for each in STOP_SIGNALS:
            handle(each, self._remember)
        handle(signal.SIGINT, self._interrupt)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act when training ends."""
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT) or signal.SIG_DFL)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Act at the end of a step."""
        if self._interrupted:
            raise KeyboardInterrupt
        if any_process(self._signalled, args.device) and state.global_step < state.max_steps:  # else it ends by itself
            self.stopped = True
            control.should_save = True
            control.should_evaluate = False  # time is short, and the resumed run does it
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act at the end of an epoch."""
        if self.stopped:  # the Trainer takes a stop for the end of the epoch
            control.should_save = control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act after a batch of an evaluation."""
        if self.is_published and any_process(self._signalled, args.device):
            raise EvaluationStoppedError

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        # In a callback around a fork, as at each start of data workers, or in a finalizer, Python prints what is raised
        # and goes on: https://docs.python.org/3.11/library/sys.html#sys.unraisablehook
        self._interrupted = True
        raise KeyboardInterrupt

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True
        self.signal_name = signal.Signals(signum).name
        if signum == signal.SIGHUP:
            leave_dead_terminal()


class EvaluateAfterSaving(TrainerCallback):
    """Put off the evaluation of an epoch's last step until the epoch's end, where `--save_strategy epoch` saves."""

    def __init__(self) -> None:
        self._put_off = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Act at the end of a step."""
        epoch_ends = state.epoch.is_integer() or control.should_training_stop
        if control.should_evaluate and args.save_strategy == SaveStrategy.EPOCH and epoch_ends:
            self._put_off, control.should_evaluate = True, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act at the end of an epoch."""
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
        """Act when an entry is logged."""
        if self.training_bar is not None and logs:
            self.training_bar.write(f"step {state.global_step}: {log_line(logs)}")


class LogLines(TrainerCallback):
    """One short line for each entry of the log, where no progress bar belongs: in a file, or where none is wanted."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Act when an entry is logged."""
        if state.is_world_process_zero and logs:
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, log_line(logs))


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

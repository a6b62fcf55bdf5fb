"""Owns what happens around the steps of a run: stopping on SIGTERM."""

import logging
import signal
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

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
        if any_process(self._signalled, args.device):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signalled = True

"""Train as qwenvl/train/train_qwen.py does, and end after measuring the share of time in which the GPU is idle.

It takes all flags of the training. The share goes into the log of trainer_state.json in the output folder.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if not __package__:  # run by path, as torchrun does: Python has put this folder on its path, not the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState

from qwenvl.train import train_qwen
from qwenvl.train.argument import TrainingArguments

IDLE_SHARE = "gpu_idle_share"
# Later than the batches that the data workers have prepared while the first step was compiled.
_FIRST_STEP, _NUM_STEPS = 30, 3


class MeasureGpuIdle(TrainerCallback):
    """Profile a few steps, add the share of time without GPU work to the log, and stop the run."""

    def __init__(self, first_step: int = _FIRST_STEP, num_steps: int = _NUM_STEPS) -> None:
        self._first_step, self._last_step = first_step, first_step + num_steps
        self._profiler: profile | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start or end the profile."""
        if state.global_step == self._first_step:
            torch.cuda.synchronize()
            # Only the GPU's activities: recording the CPU's as well would slow it down, and so let the GPU wait.
            self._profiler = profile(activities=[ProfilerActivity.CUDA])
            self._profiler.start()
        elif state.global_step == self._last_step:
            torch.cuda.synchronize()
            self._profiler.stop()
            spans = [
                (event.time_range.start, event.time_range.end)
                for event in self._profiler.events()
                if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
            ]
            state.log_history.append({IDLE_SHARE: idle_share(spans), "step": state.global_step})
            control.should_training_stop = True


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """Return the share of the time from the first start to the last end that no span (start, end) covers."""
    ordered = sorted(spans)
    if not ordered:
        return 1.0
    begin = covered_to = ordered[0][0]
    idle = 0.0
    for start, end in ordered:
        idle += max(start - covered_to, 0.0)
        covered_to = max(covered_to, end)
    return idle / max(covered_to - begin, 1e-9)


if __name__ == "__main__":
    train_qwen.main([MeasureGpuIdle()])

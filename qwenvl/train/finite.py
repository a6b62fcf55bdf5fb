"""Watch that losses and gradients stay finite without making the GPU wait."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepValues:
    """What a step's loss and gradient norms were, with the samples that it was trained on."""

    step: int
    sample_indices: list[int]
    loss: float
    gradient_norms: dict[str, float]

    def find_non_finite(self, *, loss_alone: bool) -> str | None:
        """Describe the loss or the gradient norms if they are not finite; `loss_alone` leaves out the norms."""
        if not math.isfinite(self.loss):
            return f"loss {self.loss}"
        if loss_alone or all(map(math.isfinite, self.gradient_norms.values())):
            return None
        return f"gradient norms {self.gradient_norms}"


class StepRecorder:
    """Copies the values of each step to the host behind the step's own work, to be read a step later."""

    def __init__(self) -> None:
        self._pending: tuple[int, list[int], list[str], torch.Tensor, torch.cuda.Event | None] | None = None

    def record(
        self, step: int, sample_indices: list[int], loss: torch.Tensor, gradient_norms: Mapping[str, torch.Tensor]
    ) -> StepValues | None:
        """Start to copy a step's scalars; return those of the step before, for which the GPU has long been done."""
        before = self.read()
        stacked = torch.stack([value.detach().float() for value in (loss, *gradient_norms.values())])
        event = None
        if stacked.is_cuda:
            stacked = torch.empty_like(stacked, device="cpu", pin_memory=True).copy_(stacked, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending = (step, sample_indices, list(gradient_norms), stacked, event)
        return before

    def read(self) -> StepValues | None:
        """Return the values of the last step that was recorded, waiting for it, or None if they were returned."""
        if self._pending is None:
            return None
        step, sample_indices, names, stacked, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        loss, *norms = stacked.tolist()
        return StepValues(step, sample_indices, loss, dict(zip(names, norms, strict=True)))

"""Measure a run beside its loss: throughput, padding, waiting for data, gradient norms, memory."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qwenvl.data.collators import BatchMeta
from qwenvl.model.components import named_component_parameters
from qwenvl.utils.distributed import sum_over_processes

_GIB = 2**30


class ThroughputMeter:
    """Counts samples, tokens, padding and data waiting time between two log entries."""

    def __init__(self) -> None:
        self.total_samples = 0.0
        self._paused_at: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._samples = self._tokens = self._padding = 0
        self._waited = 0.0

    def count(self, batches: Iterable[BatchMeta], waited: float) -> None:
        """Add batches that were just read, and the seconds spent on reading them."""
        for batch in batches:
            self._samples += batch.num_samples
            self._tokens += batch.num_tokens
            self._padding += batch.num_padding
        self._waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside a `with` block, such as an evaluation or a save; blocks may be nested."""
        if self._paused_at is not None:
            yield
            return
        self._paused_at = time.perf_counter()
        try:
            yield
        finally:
            # A summary inside the block has started the next interval there.
            self._started += time.perf_counter() - max(self._paused_at, self._started)
            self._paused_at = None

    def summary(self, device: torch.device) -> dict[str, float]:
        """Return the numbers of all processes since the last call, and reset them. Every process has to call it."""
        until = time.perf_counter() if self._paused_at is None else self._paused_at
        seconds = max(until - self._started, 1e-9)
        samples, tokens, padding, waited_shares, processes = sum_over_processes(
            [self._samples, self._tokens, self._padding, self._waited / seconds, 1.0], device
        )
        self.total_samples += samples
        self._restart()
        return {
            "tokens_per_second": tokens / seconds,
            "samples_per_second": samples / seconds,
            "padding_share": padding / max(tokens + padding, 1.0),
            "data_wait_share": waited_shares / processes,
            "peak_memory_gib": peak_memory_gib(),
        }


def peak_memory_gib() -> float:
    """Return the peak memory of this process: on the GPU if it has one, else in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIB
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB


def gradient_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the L2 norm of the gradients of each component that has any."""
    gradients: dict[str, list[torch.Tensor]] = {}
    for component, _, parameter in named_component_parameters(model):
        if parameter.grad is not None:
            gradients.setdefault(component, []).append(parameter.grad)
    return {component: nn.utils.get_total_norm(tensors) for component, tensors in gradients.items()}

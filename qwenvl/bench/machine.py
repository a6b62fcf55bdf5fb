"""Describe the machine that a benchmark ran on, and measure its rate of matrix products."""

import platform
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context

import torch

from qwenvl.utils.cli import cpu_name

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "deepspeed"),
    *("flash-attn", "flash-attn-4", "bitsandbytes", "torchao"),
)
_GIB = 2**30
_GPU_SIZE, _CPU_SIZE = 8192, 512
_SECONDS = 1.0


@dataclass(frozen=True)
class Machine:
    """What results depend on. `matmul_tflops` is the measured rate of square products, bf16 on a GPU."""

    device: str
    gpus: int
    gpu_gib: float
    driver: str | None
    matmul_tflops: float
    versions: dict[str, str]

    def describe(self) -> str:
        """Return all of it in one line."""
        gpus = f"{self.gpus} x {self.device} ({self.gpu_gib:.0f} GiB each)" if self.gpus else self.device
        driver = "" if self.driver is None else f", driver {self.driver}"
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{gpus}{driver}; {self.matmul_tflops:.3g} TFLOP/s measured; {versions}"


def measure_machine() -> Machine:
    """Describe this machine and measure it, in a process of its own: its GPU memory is free again afterwards."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measure).result()


def _measure() -> Machine:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return Machine(
        device=torch.cuda.get_device_name() if gpus else cpu_name(),
        gpus=gpus,
        gpu_gib=round(torch.cuda.get_device_properties(0).total_memory / _GIB, 1) if gpus else 0.0,
        driver=_driver(),
        matmul_tflops=_matmul_flops(gpus > 0) / 1e12,
        versions=versions,
    )


def _matmul_flops(on_gpu: bool) -> float:
    """Return the operations per second of square products, over a second of them."""
    size, device, dtype = (_GPU_SIZE, "cuda", torch.bfloat16) if on_gpu else (_CPU_SIZE, "cpu", torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    rounds = 8

    def run() -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            torch.mm(left, right, out=result)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    run()  # the first products load the kernels
    count, seconds = 0, 0.0
    while seconds < _SECONDS:
        seconds += run()
        count += rounds
    return 2 * size**3 * count / seconds


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None

"""Check the machine for what training needs, with a remedy for what is missing."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from qwenvl.utils.tables import format_table

REPOSITORY = Path(__file__).resolve().parents[2]
MIN_PYTHON = (3, 11)
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
MIN_DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
INSTALL = "pip install -r requirements.txt"
MIN_SHARED_MEMORY_GIB = 1.0

OK, OPTIONAL, MISSING = "ok", "optional", "MISSING"


class Check(NamedTuple):
    """One row of the table; only the status `MISSING` is a failure."""

    name: str
    status: str
    found: str
    advice: str = ""


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Compare the version of Python with the oldest supported one."""
    found = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < MIN_PYTHON:
        return Check("Python", MISSING, found, f"install Python {'.'.join(map(str, MIN_PYTHON))} or newer")
    return Check("Python", OK, found)


def check_requirements(requirements: str | None = None) -> Check:
    """Compare installed packages with the pins of requirements.txt; other versions are reported, but no failure."""
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8") if requirements is None else requirements
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE))
    versions = {name: _version(name) for name in pins}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        return Check("packages", MISSING, f"not installed: {', '.join(absent)}", INSTALL)
    others = [
        f"{name} {versions[name]} (tested: {pin})" for name, pin in pins.items() if _public(versions[name]) != pin
    ]
    found = f"all {len(pins)} of requirements.txt"
    return Check("packages", OK, f"{found}; other versions: {', '.join(others)}" if others else f"{found}, as pinned")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _public(version: str) -> str:
    """Return a version without its local label: 2.11.0 for 2.11.0+cu128."""
    return version.partition("+")[0]


def check_driver(driver: str | None, cuda: str | None) -> Check:
    """Compare the NVIDIA driver (580.95.05; None without one) with the CUDA version of PyTorch (13.0)."""
    name = "NVIDIA driver"
    if driver is None:
        advice = "a real model needs a GPU; the quick start and the tests run on the CPU"
        return Check(name, OPTIONAL, "none", advice)
    if cuda is None:
        return Check(
            name, MISSING, driver, "this PyTorch is built without CUDA; install the build from requirements.txt"
        )
    major = int(cuda.split(".")[0])
    needed = MIN_DRIVER_OF_CUDA.get(major, max(MIN_DRIVER_OF_CUDA.values()))
    found = f"{driver}; PyTorch is built for CUDA {cuda}, which needs {needed} or newer"
    if int(driver.split(".")[0]) >= needed:
        return Check(name, OK, found)
    older = [release for release, minimum in MIN_DRIVER_OF_CUDA.items() if int(driver.split(".")[0]) >= minimum]
    build = f", or install the CUDA {max(older)} build of the same PyTorch and torchvision" if older else ""
    return Check(name, MISSING, found, f"update the driver{build}")


def driver_version() -> str | None:
    """Return the version of the driver, from nvidia-smi; None without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    versions = re.findall(r"^\d+\.\d+[\d.]*$", answer.stdout, flags=re.MULTILINE)
    return versions[0] if answer.returncode == 0 and versions else None


def check_torch() -> list[Check]:
    """Check what depends on PyTorch: its build, driver, GPUs, bf16 and attention."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check("PyTorch", MISSING, _first_line(error), INSTALL)]
    cuda = torch.version.cuda
    driver = driver_version()
    build = f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"
    return [Check("PyTorch", OK, build), check_driver(driver, cuda), *check_gpus(driver), check_attention()]


def check_gpus(driver: str | None) -> list[Check]:
    """List the GPUs that PyTorch sees, their memory, and whether they compute in bf16."""
    import torch

    if not torch.cuda.is_available():
        if driver is None:
            return [Check("GPU", OPTIONAL, "none")]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        advice = "see the row of the driver" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}; unset it"
        return [Check("GPU", MISSING, "PyTorch cannot use the GPU", advice)]
    checks = []
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        checks.append(Check(f"GPU {index}", OK, f"{name}, {free:.1f} of {total:.1f} GiB free"))
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return [*checks, Check("bf16", OK, "yes")]
    return [*checks, Check("bf16", OPTIONAL, "no", "use --fp16 True; bf16 needs an Ampere GPU (A100, RTX 30) or newer")]


def check_attention() -> Check:
    """Report which attention backend `--attn_implementation auto` selects on this machine, and why."""
    try:
        import torch

        from qwenvl.model.attention import resolve_attention
    except (ImportError, OSError) as error:
        return Check("attention", MISSING, _first_line(error), INSTALL)
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    backend, reason = resolve_attention("auto", half_precision=bf16)
    return Check("attention", OK, f"{backend}: {reason}")


def check_import(name: str, module: str, use: str) -> Check:
    """Import `module` in a separate process, because some modules print, initialize the GPU, or abort."""
    command = [sys.executable, "-c", f"import {module}"]
    answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if answer.returncode == 0:
        return Check(name, OK, f"{module} {_version(module) or ''}, {use}".replace(" ,", ","))
    lines = answer.stderr.strip().splitlines()
    return Check(name, MISSING, lines[-1] if lines else f"import {module} failed", INSTALL)


def check_shared_memory(folder: str = "/dev/shm") -> Check:
    """Check the size of the memory in which data workers pass batches; containers often have only 64 MiB."""
    if not os.path.isdir(folder):
        return Check("shared memory", OPTIONAL, f"no {folder}", "use --dataloader_num_workers 0 if workers fail")
    size = shutil.disk_usage(folder).total / 2**30
    if size < MIN_SHARED_MEMORY_GIB:
        advice = "start the container with --shm-size=8g, or use --dataloader_num_workers 0"
        return Check("shared memory", OPTIONAL, f"{size:.2f} GiB", advice)
    return Check("shared memory", OK, f"{size:.1f} GiB")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_checks() -> list[Check]:
    """Run every check of this machine, in the order of the table."""
    return [
        check_python(),
        check_requirements(),
        *check_torch(),
        check_import("DeepSpeed", "deepspeed", "for --deepspeed"),
        check_import("video", "av", "reads video files"),
        check_shared_memory(),
    ]


def format_checks(checks: list[Check]) -> str:
    """Return the checks as a table, each remedy in the line below its check."""
    rows = []
    for check in checks:
        rows.append((check.name, check.status, check.found))
        if check.advice:
            rows.append(("", "", f"-> {check.advice}"))
    return format_table(rows, align="<", has_header=False)


def missing_parts(checks: list[Check]) -> list[str]:
    """Return the names of the checks that failed."""
    return [check.name for check in checks if check.status == MISSING]

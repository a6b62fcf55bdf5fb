"""FP8 layers on a GPU against bf16. Tolerance 5 %: e4m3 has three bits, and products of normal noise are 3.7 % off."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qwenvl.model.fp8 import hold_in_fp8
from tests.gpu.compare import DEVICE, NEEDS_GPU, relative_error

pytestmark = NEEDS_GPU
TOLERANCE = 0.05


@pytest.fixture(autouse=True)
def needs_fp8() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")


def output_and_gradient(module: nn.Module, rows: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    states = torch.randn(1, rows, 512, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    output = module(states)
    output.backward(torch.randn_like(output) * size)
    return output.detach(), states.grad


@pytest.mark.parametrize("gradient_size", [1.0, 1e-6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_product_and_gradient_are_those_of_bf16(compiled: bool, bias: bool, gradient_size: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(512, 768, bias=bias, dtype=torch.bfloat16)).to(DEVICE).requires_grad_(False)
    lengths = (1000, 37, 1)
    expected = [output_and_gradient(module, rows, gradient_size) for rows in lengths]
    assert hold_in_fp8(module, DEVICE) == 1
    if compiled:
        module[0].compile(dynamic=True, fullgraph=True)
    for rows, plain in zip(lengths, expected, strict=True):
        for found, reference in zip(output_and_gradient(module, rows, gradient_size), plain, strict=True):
            assert found.dtype == torch.bfloat16
            assert 0 < relative_error(found, reference) < TOLERANCE


def test_weights_go_to_the_gpu_one_by_one() -> None:
    count, width = 16, 1024
    module = nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=torch.bfloat16) for _ in range(count)))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert hold_in_fp8(module.requires_grad_(False), DEVICE) == count
    held, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    weight = width * width
    assert held < 1.05 * count * weight
    assert peak < held + 16 * weight  # of one layer: bf16, float32, and what is computed from it


def test_layers_in_fp8_are_sent_to_the_other_processes_and_trained_with(tmp_path: Path) -> None:
    """DistributedDataParallel sends all weights at its start, also from one process to itself."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)).to(DEVICE, torch.bfloat16)
        assert hold_in_fp8(module, DEVICE) == 1
        kept = module[1].weight.view(torch.uint8).clone()
        wrapped = nn.parallel.DistributedDataParallel(module, device_ids=[0])
        wrapped(torch.randn(8, 64, device=DEVICE, dtype=torch.bfloat16)).sum().backward()
        assert torch.equal(module[1].weight.view(torch.uint8), kept)
        assert module[0].weight.grad.isfinite().all() and module[0].weight.grad.any()
    finally:
        torch.distributed.destroy_process_group()

"""Tests of the description of the machine."""

import pytest

from qwenvl.bench import machine


def test_a_machine_without_a_gpu_is_described_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    found = machine._measure()
    assert found.gpus == 0 and found.gpu_gib == 0 and found.matmul_tflops > 0
    assert {"torch", "transformers", "peft"} <= set(found.versions)
    assert found.describe().startswith(f"{found.device}")


def test_gpus_are_named_with_their_number_memory_and_driver() -> None:
    found = machine.Machine("NVIDIA H200", 2, 139.8, "580.159", 795.4, {"torch": "2.11.0"})
    assert found.describe() == "2 x NVIDIA H200 (140 GiB each), driver 580.159; 795 TFLOP/s measured; torch 2.11.0"

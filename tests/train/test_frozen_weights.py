"""Trainings whose frozen weights are FP8 or NF4: losses, checkpoints, and going on from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl import load_checkpoint
from qwenvl.errors import UserError
from qwenvl.model import frozen
from qwenvl.model.fp8 import Fp8Linear
from qwenvl.train.trainer import QwenVLTrainer
from tests.train.conftest import losses
from tests.train.test_checkpoint import logits_of

Run = Callable[..., Path]
Train = Callable[..., QwenVLTrainer | None]
PACKED = {
    "data_packing": True,
    "model_max_length": 160,
    "per_device_train_batch_size": 1,
    "gradient_checkpointing": True,
}


@pytest.fixture(autouse=True)
def taken_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the flag pass without a GPU: the layers have a plain path on the CPU."""
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: (9, 0))


@pytest.fixture
def own_encoder() -> dict:
    """Return the flags of another vision encoder, whose weights are those that its class draws."""
    file = Path(__file__).with_name("own_encoder.py")
    return {"custom_vision_encoder": f"{file}:TileEncoder", "max_pixels": None, "min_pixels": None}


@pytest.mark.parametrize("mode", ["packed and checkpointed", "another encoder", "merger alone", "compiled"])
def test_losses_in_fp8_are_within_a_hundredth_of_those_in_bf16(
    train_here: Train, tmp_path: Path, own_encoder: dict, mode: str
) -> None:
    flags = {
        "packed and checkpointed": PACKED,
        "another encoder": own_encoder,
        "merger alone": {"tune_mm_llm": False, "lora_enable": False},
        "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    }[mode]
    plain = train_here("bf16", bf16=True, max_steps=4, **flags)
    held = train_here("fp8", bf16=True, max_steps=4, frozen_weights="fp8", **flags)

    assert not any(isinstance(module, Fp8Linear) for module in plain.model.modules())
    assert any(isinstance(module, Fp8Linear) for module in held.model.modules())
    found, expected = losses(tmp_path / "fp8"), losses(tmp_path / "bf16")
    assert found != expected and expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=0.01)


def check_goes_on(run_training: Run, tmp_path: Path, kind: str) -> Path:
    """Train, go on from a checkpoint in another folder, and compare; return the output folder of the first run."""
    flags = PACKED | {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "bf16": True, "frozen_weights": kind}
    whole = run_training("whole", **flags)
    shutil.copytree(whole / "checkpoint-3", tmp_path / "interrupted" / "checkpoint-3")
    with pytest.raises(UserError, match=f"that run had --frozen_weights {kind}, this one has bf16; give the same"):
        run_training("interrupted", **flags | {"frozen_weights": "bf16"}, resume_from_checkpoint="auto")
    resumed = run_training("interrupted", **flags, resume_from_checkpoint="auto")

    assert losses(resumed) == losses(whole)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return whole


def test_a_run_in_fp8_goes_on_bit_for_bit_and_its_adapter_loads_on_the_base_model(
    run_training: Run, tmp_path: Path, media: Path
) -> None:
    folder = check_goes_on(run_training, tmp_path, "fp8")

    assert json.loads((folder / "run_arguments.json").read_text())["frozen_weights"] == "fp8"
    assert "| frozen_weights | fp8 |" in (folder / "README.md").read_text()
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert not any("weight_scale" in name or "base_layer" in name for name in names)
    model, processor = load_checkpoint(folder, device="cpu")
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())
    assert logits_of(model, processor, media).isfinite().all()


def test_the_loaded_adapter_is_the_trained_one(train_here: Train, tmp_path: Path, media: Path) -> None:
    """Within 10 % of the logits' norm: the base has its whole weights again, which were 4 % off in FP8."""
    trainer = train_here("run", bf16=True, frozen_weights="fp8")
    model, processor = load_checkpoint(tmp_path / "run", device="cpu", dtype=torch.bfloat16)
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    trained = {name.replace(".default", ""): value for name, value in trainer.model.named_parameters()}
    assert all(
        torch.equal(trained[name.replace(".modules_to_save", "")].cpu(), value)
        for name, value in saved.items()
        if ".lora_" in name
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = (logits_of(each, processor, media).float() for each in (trainer.model, model))
    assert (found - expected).norm() / expected.norm() < 0.1


def test_a_dry_run_without_a_gpu_estimates_fp8(
    train_here: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: None)
    assert train_here(bf16=True, frozen_weights="fp8", dry_run=True) is None
    assert "linear layers of the language model are held in fp8" in caplog.text
    with pytest.raises(UserError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        train_here(bf16=True, frozen_weights="fp8")


def test_a_run_in_nf4_goes_on_bit_for_bit_with_losses_within_a_twentieth_of_bf16(
    run_training: Run, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = check_goes_on(run_training, tmp_path, "nf4")
    plain = run_training("bf16", **PACKED, max_steps=5, bf16=True)
    assert losses(folder) == pytest.approx(losses(plain), rel=0.05)
    assert losses(folder) != losses(plain)
    model, _ = load_checkpoint(folder, device="cpu")
    assert not any(type(module).__name__ == "Linear4bit" for module in model.modules())

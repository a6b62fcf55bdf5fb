"""Frozen weights of the language model in FP8 and NF4: what is refused, what is converted, and what is counted."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model import frozen
from qwenvl.model.arguments import BuildArguments, ModelArguments
from qwenvl.model.components import component_sizes
from qwenvl.model.fp8 import FP8, Fp8Linear
from qwenvl.model.frozen import check_frozen_weights, hold_frozen_weights
from qwenvl.model.lora import LoraSettings, add_adapter
from qwenvl.train.memory import BatchShape, estimate_memory

CPU, META = torch.device("cpu"), torch.device("meta")
ADA = (8, 9)


def arguments(tmp_path: Path, kind: str = "fp8", **flags: object) -> tuple[ModelArguments, BuildArguments]:
    build = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": True, "lora_enable": True, "report_to": "none"}
    return ModelArguments(tune_mm_llm=True, frozen_weights=kind), BuildArguments(**build | flags)


def with_adapter(standin: Path, device: torch.device = CPU) -> PreTrainedModel:
    if device == META:
        with META:
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(standin), dtype=torch.bfloat16)
    else:
        model = AutoModelForImageTextToText.from_pretrained(standin, dtype=torch.bfloat16)
    return add_adapter(model, LoraSettings(4, 8, 0.0, "q_proj,v_proj"), train={"merger"})


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lora_enable": False}, "every weight of the language model is trained and none is frozen"),
        ({"bf16": False}, "computes in bf16, but --bf16 False was given; set --bf16 True"),
        ({"bf16": False, "fp16": True}, "computes in bf16, but --fp16 True was given"),
    ],
)
def test_flags_with_which_it_cannot_act_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, flags: dict, told: str
) -> None:
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: ADA)
    with pytest.raises(UserError, match=f"--frozen_weights {kind}.*{told}"):
        check_frozen_weights(*arguments(tmp_path, kind, **flags))


def test_deepspeed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: ADA)
    model_args, training_args = arguments(tmp_path)
    training_args.deepspeed = "zero2.json"
    with pytest.raises(UserError, match="cannot be combined with --deepspeed"):
        check_frozen_weights(model_args, training_args)


@pytest.mark.parametrize(("capability", "found"), [(None, "this run has none"), ((8, 0), "this run's has 8.0")])
def test_fp8_is_refused_where_no_gpu_can_multiply_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple | None, found: str
) -> None:
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: capability)
    with pytest.raises(UserError, match=f"needs a GPU of compute capability 8.9 or higher, and {found}; leave"):
        check_frozen_weights(*arguments(tmp_path))


@pytest.mark.parametrize("capability", [ADA, (9, 0), (12, 0)])
def test_fp8_is_taken_from_ada_on_and_a_dry_run_needs_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple
) -> None:
    check_frozen_weights(*arguments(tmp_path), dry_run=True)
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: capability)
    check_frozen_weights(*arguments(tmp_path))


def test_nf4_without_bitsandbytes_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "gpu_capability", lambda device: ADA)
    monkeypatch.setattr(frozen.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'nf4 needs bitsandbytes; pip install -e "\.\[quant\]"'):
        check_frozen_weights(*arguments(tmp_path, "nf4"))


def test_the_precision_of_training_is_never_refused(tmp_path: Path) -> None:
    check_frozen_weights(*arguments(tmp_path, "bf16", bf16=False, lora_enable=False))


def text_layers(model: PreTrainedModel) -> nn.Module:
    return model.get_base_model().model.language_model.layers


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}


@pytest.mark.parametrize("device", [CPU, META])
def test_exactly_the_frozen_linear_layers_of_the_language_model_become_fp8(standin: Path, device: torch.device) -> None:
    model = with_adapter(standin, device)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    hold_frozen_weights(text_layers(model), "fp8", CPU)

    for name, linear in linear_layers(model).items():
        is_frozen_text = ".language_model.layers." in name and ".lora_" not in name
        assert isinstance(linear, Fp8Linear) == is_frozen_text, name
    for name, parameter in model.named_parameters():
        held = ".language_model.layers." in name and ".lora_" not in name and parameter.dim() == 2
        assert parameter.dtype == (FP8 if held else before[name]), name
        assert parameter.device == device
        assert not (held and parameter.requires_grad)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_model_without_weights_is_counted_whole_and_estimated_at_its_bytes(standin: Path, kind: str) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    model = with_adapter(standin, META)
    converted = sum(
        linear.weight.numel()
        for name, linear in linear_layers(model).items()
        if ".language_model.layers." in name and ".lora_" not in name
    )
    batch = BatchShape(64, 8, 16)
    sizes, before = component_sizes(model), estimate_memory(model, batch, gradient_checkpointing=True)
    hold_frozen_weights(text_layers(model), kind, CPU)

    assert component_sizes(model) == sizes
    after = estimate_memory(model, batch, gradient_checkpointing=True)
    bytes_before, bytes_after = (2, 1) if kind == "fp8" else (2, 0.5)
    saved = converted * (bytes_before - bytes_after) / 2**30
    assert before["weights"] - after["weights"] == pytest.approx(saved, rel=1e-6)
    assert {name: gib for name, gib in after.items() if name not in ("weights", "total")} == {
        name: gib for name, gib in before.items() if name not in ("weights", "total")
    }


def test_weights_in_no_linear_layer_are_named(standin: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = with_adapter(standin)
    with caplog.at_level(logging.INFO, logger="qwenvl"):
        hold_frozen_weights(text_layers(model), "fp8", CPU)
    assert "linear layers of the language model are held in fp8" in caplog.text
    assert "experts" not in caplog.text

    model = with_adapter(standin)
    text_layers(model)[0].experts = nn.ParameterList([nn.Parameter(torch.zeros(2, 3, 4), requires_grad=False)])
    with caplog.at_level(logging.INFO, logger="qwenvl"):
        hold_frozen_weights(text_layers(model), "fp8", CPU)
    assert (
        "24 weights of the language model's layers are not in linear layers (experts) and stay in bf16" in caplog.text
    )

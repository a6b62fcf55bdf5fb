import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model.arguments import BuildArguments, ModelArguments
from qwenvl.model.attention import resolve_attention
from qwenvl.model.build import build_model, compile_layers, compute_dtype, load_config, load_pretrained
from qwenvl.model.loss import piece_loss_and_gradient
from qwenvl.vision.native import pack_vision_attention
from qwenvl.vision.tower import CustomVisionTower

LORA = {"lora_enable": True, "lora_r": 2, "lora_alpha": 4}
Build = Callable[..., PreTrainedModel]


@pytest.fixture
def build(standin: Path, tmp_path: Path) -> Build:
    """Return a function that builds the stand-in with these parts trained, and these arguments of the build."""

    def run(
        parts: tuple[str, ...] = ("llm", "mlp"), *, without_weights: bool = False, **flags: object
    ) -> torch.nn.Module:
        model_args = ModelArguments(str(standin), **{f"tune_mm_{part}": True for part in parts})
        training_args = BuildArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
        return build_model(model_args, training_args, without_weights=without_weights)

    return run


def trainable(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("flags", [LORA, {}], ids=["LoRA", "whole"])
@pytest.mark.parametrize("parts", [("llm",), ("llm", "mlp"), ("llm", "mlp", "vision")])
def test_a_model_without_weights_has_the_trainable_parameters_of_the_real_one(
    build: Build, parts: tuple[str, ...], flags: dict
) -> None:
    real, planned = build(parts, **flags), build(parts, without_weights=True, **flags)

    assert trainable(planned) == trainable(real) != {}
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert not any(parameter.is_meta for parameter in real.parameters())


def test_in_bf16_what_is_trained_is_float32_and_the_rest_is_not(build: Build) -> None:
    model = build(bf16=True, **LORA)

    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})


def test_training_uses_no_key_value_cache(build: Build) -> None:
    config = build(**LORA).config

    assert config.use_cache is config.text_config.use_cache is False


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16), ({}, torch.float32)]
)
def test_the_precision_of_the_flags_is_that_of_the_products(tmp_path: Path, flags: dict, dtype: torch.dtype) -> None:
    assert compute_dtype(BuildArguments(output_dir=str(tmp_path), use_cpu=True, **flags)) is dtype


def test_only_layers_of_the_language_model_are_compiled_beside_the_official_encoder(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled = build(**LORA), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append((module, how)))

    compile_layers(model, "inductor", "default")

    names = {name for name, module in model.named_modules() if any(module is each for each, _ in compiled)}
    assert len(names) == len(compiled) == model.config.text_config.num_hidden_layers
    assert all(".language_model.layers." in name for name in names)
    assert all(how == {"backend": "inductor", "mode": "default", "dynamic": True} for _, how in compiled)


def test_the_official_encoder_s_layers_are_compiled_where_one_attention_call_serves_all_images(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled = build(**LORA), []
    pack_vision_attention(model.base_model.model.model.visual)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append(module))

    compile_layers(model, "inductor", "default")

    config = model.config
    assert len(compiled) == config.text_config.num_hidden_layers + config.vision_config.depth


def test_the_loss_of_a_piece_is_compiled_with_the_layers(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(**LORA)
    head = model.base_model.model.lm_head
    assert head.loss_and_gradient is piece_loss_and_gradient
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: None)

    compile_layers(model, "eager", None)

    assert head.loss_and_gradient is not piece_loss_and_gradient
    logits, targets = torch.randn(3, 5), torch.tensor([0, 4, 2])
    for compiled, plain in zip(
        head.loss_and_gradient(logits, targets), piece_loss_and_gradient(logits, targets), strict=True
    ):
        torch.testing.assert_close(compiled, plain)


def test_an_adapter_is_not_taken_for_a_model_and_its_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "models/4b"}))

    with pytest.raises(UserError, match="holds an adapter .*give its base model, models/4b"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder"), ("empty", "the folder has no config.json")]
)
def test_a_folder_that_holds_no_model_is_refused_with_what_to_give(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / name))


def test_a_model_remembers_its_folder_from_everywhere(standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(standin.parent)

    model = load_pretrained(standin.name, dtype=torch.float32, attention=resolve_attention("sdpa"))

    assert model.name_or_path == str(standin)
    assert not isinstance(model.model.visual, CustomVisionTower)

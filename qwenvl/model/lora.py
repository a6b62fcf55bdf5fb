"""Add the adapter: LoRA on the language model, beside the fully trained merger (and encoder)."""

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model.components import module_names, named_component_parameters, plain_tower_name

_LANGUAGE_MODEL = "model.language_model"


def check_lora_targets(config: PreTrainedConfig, target_modules: str) -> None:
    """Raise `UserError` if a name of `--lora_target_modules` matches no layer; no weights are loaded.

    `config` is the configuration of the whole model.
    """
    # Made by its class: `from_config` would partition the model under DeepSpeed ZeRO-3.
    with torch.device("meta"):
        model = MODEL_MAPPING[type(config.text_config)](config.text_config)
    _wanted_layers(target_modules, _linear_names(model))


def lora_target_pattern(model: nn.Module, target_modules: str) -> str:
    """Return the regular expression of the linear layers to adapt, anchored to the language model.

    `target_modules` is a comma-separated list of layer names (`q_proj,v_proj`), or `all-linear`. The anchor keeps LoRA
    out of vision encoders, whose layers often have the same names. Raises `UserError` for a name that matches no layer.
    """
    wanted = _wanted_layers(target_modules, _linear_names(model.get_submodule(_LANGUAGE_MODEL)))
    return rf"{re.escape(_LANGUAGE_MODEL)}\..*\.({'|'.join(map(re.escape, wanted))})"


def _linear_names(language_model: nn.Module) -> list[str]:
    """Return the last parts of the names of all linear layers."""
    layers = (name for name, module in language_model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in layers})


def _wanted_layers(target_modules: str, available: list[str]) -> list[str]:
    wanted = [name.strip() for name in target_modules.split(",") if name.strip()]
    if wanted == ["all-linear"]:
        wanted = available
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise UserError(
            f"--lora_target_modules {target_modules!r}: {', '.join(unknown) or 'an empty list'} matches no linear "
            f"layer of the language model; choose from {', '.join(available)}, or all-linear"
        )
    return wanted


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale (alpha / r) and input dropout of LoRA, and the linear layers that get it."""

    r: int
    alpha: int
    dropout: float
    target_modules: str


def add_adapter(
    model: PreTrainedModel,
    lora: LoraSettings | None,
    *,
    train: Collection[str] = (),
    save: Collection[str] = (),
) -> PeftModel:
    """Freeze the model and add what is trained: LoRA on the language model if given, and the components of `train`.

    `train` and `save` name components ("merger", "vision"). Fully trained components go into PEFT's
    `modules_to_save`, so that the adapter folder holds them and a plain `PeftModel.from_pretrained(base, folder)`
    restores them; `save` adds frozen components. LoRA is https://arxiv.org/abs/2106.09685. Raises `UserError` for an
    encoder in which PEFT would match other modules as well.
    """
    modules_to_save = [name for component in sorted({*train, *save}) for name in module_names(model, component)]
    _check_module_name_collisions(model, modules_to_save)
    _check_gradients_are_possible(model, modules_to_save)
    if lora is None:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=DUMMY_TARGET_MODULES, modules_to_save=modules_to_save)
    else:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora_target_pattern(model, lora.target_modules),
            modules_to_save=modules_to_save or None,
        )
    # PEFT would cast only LoRA to float32; `build_model` decides the precision of all trained parameters.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for component, _, parameter in named_component_parameters(adapted):
        parameter.requires_grad_(parameter.requires_grad and component in (*train, "llm"))
    return adapted


def _check_module_name_collisions(model: nn.Module, modules_to_save: list[str]) -> None:
    # PEFT matches modules to save by the end of their names; can go when it compares whole names:
    # https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py#L1088
    for name, _ in model.named_modules():
        for kept in modules_to_save:
            if name.endswith(kept) and name != f"model.{kept}":
                raise UserError(
                    f"the encoder has a module called {plain_tower_name(f'{name}.')[:-1]}, which PEFT would confuse "
                    f"with the tower's own {kept}; rename it"
                )


def _check_gradients_are_possible(model: nn.Module, modules_to_save: list[str]) -> None:
    # PEFT requests gradients for all parameters that it saves, even if they are frozen afterwards; can go when it skips
    # integers: https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py#L284
    for kept in modules_to_save:
        for name, parameter in model.get_submodule(f"model.{kept}").named_parameters():
            if not (parameter.is_floating_point() or parameter.is_complex()):
                raise UserError(
                    f"{kept}.{name} is a parameter of {parameter.dtype}, which an adapter cannot hold; make it a "
                    "buffer, by register_buffer"
                )

"""Owns the adapter: LoRA on the language model, and the merger (and encoder) that are trained whole beside it."""

import re
from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model.components import module_names, named_component_parameters


def lora_target_pattern(model: nn.Module, target_modules: str) -> str:
    """Return the regular expression of the linear layers to adapt, anchored to the language model.

    `target_modules` is a comma-separated list of layer names (`q_proj,v_proj`), or `all-linear`. The anchor keeps LoRA
    out of vision encoders, whose layers often bear the same names. Raises `UserError` for a name that matches no layer.
    """
    available = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if ".language_model." in f".{name}" and isinstance(module, nn.Linear)
        }
    )
    wanted = [name.strip() for name in target_modules.split(",") if name.strip()]
    if wanted == ["all-linear"]:
        wanted = available
    unknown = [name for name in wanted if name not in available]
    if unknown or not wanted:
        raise UserError(
            f"--lora_target_modules {target_modules!r}: {', '.join(unknown) or 'an empty list'} matches no linear "
            f"layer of the language model; choose from {', '.join(available)}, or all-linear"
        )
    return rf".*\.language_model\..*\.({'|'.join(map(re.escape, wanted))})"


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
    train_merger: bool,
    train_vision: bool,
    save_vision: bool = False,
) -> PeftModel:
    """Freeze the model and add what is trained: LoRA on the language model if given, merger and encoder if asked.

    What is trained whole goes into PEFT's `modules_to_save`, so the adapter folder holds it and a plain
    `PeftModel.from_pretrained(base, folder)` restores it; `save_vision` puts a frozen encoder there, too. LoRA is
    https://arxiv.org/abs/2106.09685.
    """
    kept_whole = []
    if train_merger:
        kept_whole += module_names(model, "merger")
    if train_vision or save_vision:
        kept_whole += module_names(model, "vision")
    if lora is None:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=DUMMY_TARGET_MODULES, modules_to_save=kept_whole)
    else:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora_target_pattern(model, lora.target_modules),
            modules_to_save=kept_whole or None,
        )
    # PEFT would make LoRA float32 and leave the rest: what precision is trained in, `build_model` decides.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if not train_vision:
        for component, _, parameter in named_component_parameters(adapted):
            parameter.requires_grad_(parameter.requires_grad and component != "vision")
    return adapted

"""Owns LoRA: from the run's arguments to a PEFT model whose adapter carries the trained merger (and encoder) along."""

import re

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model.components import module_names


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


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: str,
    train_merger: bool,
    train_vision: bool,
) -> PeftModel:
    """Freeze the model, add LoRA to its language model, and make the merger and the vision encoder trainable if asked.

    What is trained whole goes into PEFT's `modules_to_save`, so the adapter folder holds it and a plain
    `PeftModel.from_pretrained(base, folder)` restores it. LoRA is https://arxiv.org/abs/2106.09685.
    """
    trained_whole = []
    if train_merger:
        trained_whole += module_names(model, "merger")
    if train_vision:
        trained_whole += module_names(model, "vision")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=lora_target_pattern(model, target_modules),
        modules_to_save=trained_whole or None,
    )
    return get_peft_model(model, config)

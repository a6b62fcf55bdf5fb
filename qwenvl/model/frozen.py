"""Hold the frozen linear layers of the language model in fewer bits than the training computes in."""

import importlib.util
import logging

import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.model.arguments import BuildArguments, ModelArguments
from qwenvl.model.fp8 import hold_in_fp8
from qwenvl.model.nf4 import hold_in_nf4

logger = logging.getLogger(__name__)

_HOLD = {"fp8": hold_in_fp8, "nf4": hold_in_nf4}
# FP8 products came with Ada and Hopper; bitsandbytes' kernels for CUDA 13 start at Turing.
_CAPABILITY = {"fp8": (8, 9), "nf4": (7, 5)}


def check_frozen_weights(model_args: ModelArguments, training_args: BuildArguments, *, dry_run: bool = False) -> None:
    """Raise `UserError` where --frozen_weights cannot do what it says, with these flags or on this machine.

    A dry run builds no weights, so it needs no GPU.
    """
    kind = model_args.frozen_weights
    if kind == "bf16":
        return
    flag = f"--frozen_weights {kind}"
    if model_args.tune_mm_llm and not training_args.lora_enable:
        raise UserError(
            f"{flag}: without --lora_enable True every weight of the language model is trained and none is frozen; set "
            "--lora_enable True, or leave --frozen_weights out"
        )
    if training_args.deepspeed:
        raise UserError(
            f"{flag} cannot be combined with --deepspeed, which converts every weight to one type; leave --deepspeed "
            "out (with scripts/: DEEPSPEED=none)"
        )
    if not training_args.bf16:
        given = "--fp16 True" if training_args.fp16 else "--bf16 False"
        raise UserError(f"{flag} computes in bf16, but {given} was given; set --bf16 True")
    if kind == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f'{flag} needs bitsandbytes; pip install -e ".[quant]", or leave --frozen_weights out')
    capability, needed = gpu_capability(training_args.device), _CAPABILITY[kind]
    if capability is None and dry_run:
        return
    if capability is None or capability < needed:
        found = "this run has none" if capability is None else f"this run's has {_version(capability)}"
        raise UserError(
            f"{flag} needs a GPU of compute capability {_version(needed)} or higher, and {found}; leave "
            "--frozen_weights out"
        )


def gpu_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of a run's device, None if it is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def hold_frozen_weights(layers: nn.Module, kind: str, device: torch.device) -> None:
    """Convert the frozen linear layers inside the language model's `layers` to `kind` ("fp8" or "nf4"), in place.

    They are on `device` afterwards, except those of a model without weights, which stay on the meta device. Adapters
    are left as they are.
    """
    count = _HOLD[kind](layers, device)
    logger.info("frozen weights: %d linear layers of the language model are held in %s", count, kind)
    if others := _frozen_matrices_outside_linear_layers(layers):
        logger.warning(
            "--frozen_weights %s: %s weights of the language model's layers are not in linear layers (experts) and "
            "stay in bf16",
            kind,
            f"{others:,}",
        )


def _frozen_matrices_outside_linear_layers(layers: nn.Module) -> int:
    """Return the number of frozen weights in matrices and stacks of them that no linear layer owns."""
    return sum(
        parameter.numel()
        for module in layers.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1 and not parameter.requires_grad
    )

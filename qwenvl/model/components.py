"""Partition a Qwen3-VL into its components vision, merger and llm."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from qwenvl.utils.zero3 import full_numel

COMPONENTS = ("vision", "merger", "llm")

_MERGERS = ("merger", "deepstack_merger_list")
# PEFT keeps the untrained weights of a fully trained module beside the trained copy.
_PEFT_ORIGINAL = ".original_module."


@dataclass(frozen=True)
class ComponentSize:
    """Number of parameters of a component, in all and trainable."""

    total: int
    trainable: int


def component_of(parameter_name: str) -> str:
    """Return the component ("vision", "merger" or "llm") that owns a parameter, from its dotted name.

    The merger is `visual.merger` with all of `visual.deepstack_merger_list`; vision is the rest of `visual`; llm is
    everything else: the language model, its embeddings and its head. Names may carry the prefixes of PEFT
    and DDP.
    """
    name = plain_tower_name(parameter_name)
    if not name:
        return "llm"
    return "merger" if name.partition(".")[0] in _MERGERS else "vision"


def plain_tower_name(parameter_name: str) -> str:
    """Return the name of a parameter as the tower itself has it (`merger.proj.weight`), or "" if it is not the tower's.

    Wrappers add prefixes before the first `visual.` of a name; PEFT also inserts one between a fully trained module and
    its parameters.
    """
    _, tower, name = f".{parameter_name}".partition(".visual.")
    return name.replace(".modules_to_save.default", "", 1) if tower else ""


def named_component_parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield (component, name, parameter) for each parameter that the forward pass uses, each once."""
    for name, parameter in model.named_parameters():
        if _PEFT_ORIGINAL not in name:
            yield component_of(name), name, parameter


def component_sizes(model: nn.Module) -> dict[str, ComponentSize]:
    """Count the parameters of each component, in elements; partitioned (ZeRO-3) and packed (4-bit) ones count whole."""
    # bitsandbytes' Linear4bit holds two weights in a byte.
    packed = {
        id(linear.weight): linear.in_features * linear.out_features
        for linear in model.modules()
        if isinstance(linear, nn.Linear) and linear.weight.dtype == torch.uint8
    }
    total = dict.fromkeys(COMPONENTS, 0)
    trainable = dict.fromkeys(COMPONENTS, 0)
    for component, _, parameter in named_component_parameters(model):
        count = packed.get(id(parameter), full_numel(parameter))
        total[component] += count
        trainable[component] += count if parameter.requires_grad else 0
    return {component: ComponentSize(total[component], trainable[component]) for component in COMPONENTS}


def set_trainable(model: nn.Module, components: Collection[str]) -> None:
    """Make the floating-point parameters of the named components trainable, and freeze all others."""
    for component, _, parameter in named_component_parameters(model):
        can_train = parameter.is_floating_point() or parameter.is_complex()
        parameter.requires_grad_(can_train and component in components)


def module_names(model: nn.Module, component: str) -> list[str]:
    """Return the dotted names, from `visual` on, of the modules that together hold a component of the vision side.

    Containers that are never called (`ModuleList`) are replaced by their members, because PEFT can save only modules
    with a forward: https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/other.py#L349. `component` is
    "merger" or "vision".
    """
    tower = model.get_submodule("model.visual")
    names = []
    for name, child in tower.named_children():
        members = [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        names += [f"visual.{member}" for member in members]
    has_parameters = {name for name in names if any(True for _ in model.get_submodule(f"model.{name}").parameters())}
    return [name for name in names if name in has_parameters and component_of(f"{name}.") == component]

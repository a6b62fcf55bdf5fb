"""Build the optimizer's parameter groups: component x decay, with the component's learning rate."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from qwenvl.errors import UserError
from qwenvl.model.components import COMPONENTS, component_sizes, named_component_parameters
from qwenvl.utils.tables import format_table
from qwenvl.utils.zero3 import full_shape


def build_param_groups(
    model: nn.Module, learning_rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Put every trainable parameter into exactly one group.

    Groups are named "merger", or "merger_no_decay" for parameters of one dimension (biases and norms). Raises
    `UserError` if nothing is trainable.
    """
    groups: dict[str, dict[str, Any]] = {}
    for component in COMPONENTS:
        for suffix, decay in (("", weight_decay), ("_no_decay", 0.0)):
            name = component + suffix
            groups[name] = {
                "params": [],
                "lr": learning_rates[component],
                "weight_decay": decay,
                "component": component,
                "name": name,
            }
    for component, _, parameter in named_component_parameters(model):
        if parameter.requires_grad:
            dimensions = len(full_shape(parameter))
            groups[component if dimensions > 1 else f"{component}_no_decay"]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    grouped = sum(len(group["params"]) for group in filled)
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    if not filled:
        raise UserError("nothing is trainable: set --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision to True")
    if grouped != trainable:
        raise RuntimeError(f"{trainable} parameters are trainable but {grouped} are in optimizer groups")
    return filled


def component_table(model: nn.Module, learning_rates: Mapping[str, float], weight_decay: float) -> str:
    """Return a text table: component, parameters, trainable parameters, learning rate, weight decay."""
    rows = [("component", "parameters", "trainable", "learning rate", "weight decay")]
    for component, size in component_sizes(model).items():
        trained = size.trainable > 0
        rows.append(
            (
                component,
                f"{size.total:,}",
                f"{size.trainable:,}" if trained else "frozen",
                f"{learning_rates[component]:g}" if trained else "-",
                f"{weight_decay:g}" if trained else "-",
            )
        )
    return format_table(rows)

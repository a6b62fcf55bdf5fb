"""Check before the first step that a checkpoint can hold the model, from names, types and shapes."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from qwenvl.errors import UserError


def check_savable(model: PreTrainedModel | PeftModel) -> None:
    """Raise `UserError` if the model's state dict cannot be written as safetensors and read back unchanged.

    Refused are entries that are not tensors, types and layouts that safetensors does not support, and, in a whole
    model, tensors that share memory without being declared as tied by its class (PEFT writes a copy of each).
    """
    try:
        model.config.to_json_string()
    except TypeError as error:
        raise UserError(f"the model's configuration cannot be written as JSON: {error}") from None
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{name} is a {type(value).__name__} in the model's state dict, which a checkpoint cannot hold; do "
                "not return it from `get_extra_state`, or make it a tensor"
            )
        if not _is_storable(value.dtype, value.layout):
            raise UserError(
                f"{name} is a {value.layout} tensor of {value.dtype}, which a checkpoint cannot hold; make it a dense "
                "one of another type, or register the buffer with persistent=False"
            )
    if isinstance(model, PeftModel):
        return
    declared = {name for pair in model.get_expanded_tied_weights_keys(all_submodels=True).items() for name in pair}
    for first, second in _find_shared_tensors(state):
        if not {first, second} <= declared:
            raise UserError(
                f"{first} and {second} are the same tensor (tied weights), which a whole model's checkpoint cannot "
                "hold; train with --lora_enable True, whose adapter holds a copy of each, or give the encoder one "
                "parameter and use it twice in forward"
            )


def _is_storable(dtype: torch.dtype, layout: torch.layout) -> bool:
    if layout is not torch.strided:
        return False
    try:
        safetensors.torch.save({"one": torch.zeros(1, dtype=dtype, device="cpu")})
    except Exception:  # KeyError, ValueError or safetensors' own, depending on version and type
        return False
    return True


def _find_shared_tensors(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Return pairs of names whose tensors share memory; without memory (meta device, ZeRO-3), identical ones."""
    spans: dict[Any, list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in state.items():
        if tensor.is_meta or tensor.numel() == 0:
            spans[id(tensor)].append((0, 1, name))
        else:
            start = tensor.storage_offset() * tensor.element_size()
            key = tensor.device, tensor.untyped_storage().data_ptr()
            spans[key].append((start, start + tensor.nbytes, name))
    return [
        (before[2], after[2])
        for group in spans.values()
        for before, after in pairwise(sorted(group))
        if after[0] < before[1]
    ]

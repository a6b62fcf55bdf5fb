"""Owns the swap in a run: from the flags of a custom encoder to its tower, and a merger's way from run to run."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, ProcessorMixin

from qwenvl.errors import UserError
from qwenvl.model.components import component_of, named_component_parameters, plain_tower_name
from qwenvl.train.argument import ModelArguments
from qwenvl.vision import CustomVisionConfig, EncoderOptions, TowerOptions, plan_vision_config


def plan_custom_vision(
    model_args: ModelArguments, base_config: PreTrainedConfig, processor: ProcessorMixin
) -> CustomVisionConfig | None:
    """Return the configuration of the tower that the flags ask for, or None if the model keeps its own.

    Raises `UserError` for flags that do not fit the encoder or the base model.
    """
    if model_args.custom_vision_encoder is None:
        return None
    options = EncoderOptions(
        layer=model_args.vision_layer,
        final_norm=model_args.vision_final_norm,
        keep_prefix_tokens=model_args.vision_prefix_tokens,
        resize=model_args.vision_resize,
        input_size=_input_size(model_args.vision_input_size),
    )
    tower = TowerOptions(
        encoder=model_args.custom_vision_encoder,
        path=model_args.custom_vision_pretrained_path,
        options=options,
        merger=model_args.vision_merger,
        input_mode=model_args.custom_vision_input,
    )
    return plan_vision_config(base_config, tower, processor)


def _input_size(text: str | None) -> tuple[int, int] | None:
    """Read "518" or "518x1036" as (height, width) in pixels."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--vision_input_size {text}: expected pixels, as 518, or height x width, as 518x1036")
    return int(sides[0]), int(sides[-1])


def load_merger(model: nn.Module, folder: str) -> None:
    """Copy the merger of a trained model (or adapter) into this one; nothing else of it is read.

    Raises `UserError` if the folder has no merger, or one of another shape.
    """
    found = _saved_merger(Path(folder))
    own = {
        plain_tower_name(name): parameter
        for component, name, parameter in named_component_parameters(model)
        if component == "merger"
    }
    if not found:
        raise UserError(f"--vision_merger_path {folder}: no merger in its .safetensors files; name an output folder")
    shapes = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in own.items()}
    found_shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if found_shapes != shapes:
        raise UserError(
            f"--vision_merger_path {folder}: its merger is {found_shapes}, this model's is {shapes}; use the same "
            "encoder, --vision_merger and base model in both stages"
        )
    with _gathered(list(own.values())):
        for name, parameter in own.items():
            parameter.data.copy_(found[name])


def _gathered(parameters: list[nn.Parameter]) -> AbstractContextManager:
    """Bring parameters that DeepSpeed ZeRO-3 has partitioned together for a change that reaches every process."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def _saved_merger(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if component_of(name) == "merger"]  # noqa: SIM118
            tensors |= {plain_tower_name(name): file.get_tensor(name) for name in names}
    return tensors

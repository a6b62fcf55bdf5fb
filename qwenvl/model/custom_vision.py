"""Plan the swapped encoder of a run from its flags, and load a merger that another run has trained."""

import logging
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.model.base_files import refuse_pointers
from qwenvl.model.components import component_of, plain_tower_name
from qwenvl.utils.json_text import read_json
from qwenvl.utils.zero3 import full_shape, gathered
from qwenvl.vision import CustomVisionConfig, EncoderOptions, TowerOptions, plan_vision_config
from qwenvl.vision.merger import merger_class
from qwenvl.vision.options import MERGER_OPTIONS, OPTION_FLAGS
from qwenvl.vision.trust import refuse_untrusted_file, trust_encoder_file

logger = logging.getLogger(__name__)

# Adam moves a weight by about its rate a step: here a thousand steps change a fresh merger by at most a third.
SLOW_FOR_A_FRESH_MERGER = 1e-5


def plan_custom_vision(
    model_args: ModelArguments, base_config: PreTrainedConfig, processor: ProcessorMixin
) -> CustomVisionConfig | None:
    """Return the configuration of the tower that the flags ask for, or None if the model keeps its own.

    Raises `UserError` for flags that do not fit the encoder or the base model, and for a base model whose configuration
    names its encoder by code that `--trust_remote_code` does not allow.
    """
    if isinstance(base_config.vision_config, CustomVisionConfig):
        named = base_config.vision_config.encoder
        if model_args.trust_remote_code:
            trust_encoder_file(named)
        try:
            refuse_untrusted_file(named)
        except UserError as error:
            raise UserError(f"--model_name_or_path {model_args.model_name_or_path}: {error}") from None
    for path in (model_args.custom_vision_pretrained_path, model_args.vision_merger_path):
        if path is not None:
            refuse_pointers(path)
    if (path := model_args.vision_merger_path) is not None and not any(Path(path).glob("*.safetensors")):
        raise UserError(f"--vision_merger_path {path}: no .safetensors files; name an output folder")
    if model_args.custom_vision_encoder is None:
        return None
    merger_class(model_args.vision_merger)  # raises for an unknown name, before the encoder is loaded
    values = {option: getattr(model_args, flag) for flag, option in OPTION_FLAGS.items()}
    values["input_size"] = _parse_input_size(values["input_size"])
    tower = TowerOptions(
        encoder=model_args.custom_vision_encoder,
        path=model_args.custom_vision_pretrained_path,
        merger=values.pop("merger"),
        input_mode=values.pop("input_mode"),
        options=EncoderOptions(**values),
    )
    return plan_vision_config(base_config, tower, processor)


def warn_of_slow_merger(model_args: ModelArguments, rate: float) -> None:
    """Warn if the learning rate is too low for the merger of a swapped encoder, which starts at random."""
    fresh = model_args.custom_vision_encoder is not None and model_args.vision_merger_path is None
    if fresh and model_args.tune_mm_mlp and rate <= SLOW_FOR_A_FRESH_MERGER:
        better = 2e-5 if model_args.tune_mm_llm else 1e-3
        logger.warning(
            "the merger of %s starts at random, and a learning rate of %g hardly moves it; give --mm_projector_lr %g "
            "or more (--mm_projector_lr 2e-5 beside a trained language model, 1e-3 alone)",
            model_args.custom_vision_encoder,
            rate,
            better,
        )


def _parse_input_size(text: str | None) -> tuple[int, int] | None:
    """Parse "518" or "518x1036" as (height, width) in pixels."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--vision_input_size {text}: expected pixels, as 518, or height x width, as 518x1036")
    return int(sides[0]), int(sides[-1])


def load_trained_tower(model: PreTrainedModel, folder: str) -> set[str]:
    """Copy the merger of a trained model (or adapter) into this one, and the encoder if the folder has a trained one.

    A merger fits the encoder that it was trained with. Returns the components that were copied. Raises `UserError` if
    the folder has no merger, one of another shape, or one of another encoder.
    """
    found = _read_saved_tower(Path(folder))
    if not found.get("merger"):
        raise UserError(f"--vision_merger_path {folder}: no merger in its .safetensors files; name an output folder")
    _check_same_encoder(model.config.vision_config, Path(folder), brings_encoder="vision" in found)
    copied = set()
    state = model.model.visual.state_dict(keep_vars=True)
    for component, tensors in found.items():
        own = {name: tensor for name, tensor in state.items() if component_of(f"visual.{name}") == component}
        if _shapes_of(tensors) != _shapes_of(own):
            raise UserError(
                f"--vision_merger_path {folder}: its {component} is {_describe_tensors(tensors)}, this model's is "
                f"{_describe_tensors(own)}; use the same encoder, --vision_merger and base model in both stages"
            )
        if component == "vision" and all(_has_equal_values(own[name], tensor) for name, tensor in tensors.items()):
            continue
        copied.add(component)
        with gathered(own.values(), modified=True):
            for name, tensor in own.items():
                tensor.data.copy_(tensors[name])
    if "vision" in copied and isinstance(model.config.vision_config, CustomVisionConfig):
        # The encoder no longer has its published weights: checkpoints have to hold a copy.
        model.config.vision_config.encoder_weights = model.config.vision_config.encoder_sha256 = None
    return copied


def _read_saved_tower(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read the saved tensors of merger and encoder, by component and by their names in the tower."""
    tower: dict[str, dict[str, Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if component_of(name) != "llm":
                    tower.setdefault(component_of(name), {})[plain_tower_name(name)] = file.get_tensor(name)
    return tower


def _check_same_encoder(vision_config: PreTrainedConfig, folder: Path, *, brings_encoder: bool) -> None:
    """Raise `UserError` if a merger was trained with another encoder, or another layer, norm or prefix of it.

    Another input size or resize policy is allowed: stage 2 may use a higher resolution.
    """
    if not isinstance(vision_config, CustomVisionConfig) or not (folder / "config.json").is_file():
        return
    theirs = read_json(folder / "config.json").get("vision_config", {})
    for name in ("encoder", *MERGER_OPTIONS, "encoder_sha256"):
        before, now = theirs.get(name), getattr(vision_config, name)
        if name == "encoder_sha256" and (brings_encoder or None in (before, now)):
            continue
        if before != now:
            raise UserError(
                f"--vision_merger_path {folder}: its merger was trained with {name} {before}, this run has {now}; use "
                "the same encoder and options in both stages"
            )


def _has_equal_values(own: Tensor, saved: Tensor) -> bool:
    """Whether a tensor equals the saved one; False where its values are absent (meta) or partial (ZeRO-3)."""
    if own.is_meta or own.shape != saved.shape:
        return False
    return torch.equal(own.detach().cpu(), saved.to(own.dtype))


def _shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: full_shape(tensor) for name, tensor in tensors.items()}


def _describe_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the names and shapes of the first tensors."""
    named = [f"{name} {shape}" for name, shape in sorted(_shapes_of(tensors).items())]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")

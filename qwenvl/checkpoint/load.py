"""Load a trained model and its processor from a checkpoint or an output folder."""

import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin
from transformers.trainer_utils import sort_checkpoints

from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault
from qwenvl.checkpoint.save import MODEL_CONFIG_NAMES
from qwenvl.errors import UserError
from qwenvl.model.attention import resolve_attention
from qwenvl.model.build import ADAPTER_CONFIG_NAME, load_pretrained, load_processor
from qwenvl.model.trust import refuse_foreign_code, refuse_pickled_weights
from qwenvl.utils.json_text import read_json
from qwenvl.vision import CUSTOM_MODEL_TYPES, swap_vision_tower
from qwenvl.vision.trust import trust_encoder_file


def load_checkpoint(
    folder: str | Path,
    *,
    base_model: str | None = None,
    encoder_path: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str = "sdpa",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin]:
    """Load a trained model and its processor from a checkpoint or output folder, in evaluation mode.

    Works for adapters (the base model and a frozen custom encoder's weights are found where training found them, or at
    `base_model` and `encoder_path`) and for whole models. The processor pads on the left, as `generate` needs for
    prompts of several lengths.

    Raises `UserError` if the folder holds neither, if one of its files is broken, and if loading it or its base model
    would run code that comes with them (an encoder in a Python file, `auto_map`); `trust_remote_code` allows that.
    """
    folder = Path(folder)
    _check_model_folder(folder)
    refuse_foreign_code(folder, trust_remote_code)
    attention = resolve_attention(attn_implementation)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        adapter = read_json(folder / ADAPTER_CONFIG_NAME)
        base_model = base_model or adapter["base_model_name_or_path"]
        try:
            model = load_pretrained(base_model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
        except UserError as error:
            raise UserError(
                f"the base model of {folder}: {error}; pass its new path to load_checkpoint as base_model"
            ) from None
        model = _with_tower_of(model, folder, adapter["modules_to_save"] or [], encoder_path, trust_remote_code)
        with warnings.catch_warnings():
            # PEFT reads an attribute under its deprecated name; can go when it reads `is_activation_checkpointing`:
            # https://github.com/huggingface/peft/blob/v0.21.2/src/peft/peft_model.py#L184
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            model = PeftModel.from_pretrained(model, str(folder))
    else:
        model = load_pretrained(str(folder), dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), load_processor(str(folder), trust_remote_code=trust_remote_code)


def _check_model_folder(folder: Path) -> None:
    """Raise `UserError` if a folder holds no model, or a broken one; name the checkpoints in it as a way out."""
    inside = [Path(path).name for path in sort_checkpoints(str(folder))] if folder.is_dir() else []
    held = f"it holds {', '.join(inside)}: name one" if inside else None
    if not any((folder / name).is_file() for name in (*MODEL_CONFIG_NAMES, MANIFEST_NAME)):
        named = " or ".join(MODEL_CONFIG_NAMES)
        raise UserError(f"{folder} holds no trained model ({named}); {held or 'check the path'}")
    refuse_pickled_weights(folder)
    if (fault := find_fault(folder, for_resume=False)) is not None:
        remedy = held or "copy it again or use another checkpoint"
        if (folder / MANIFEST_NAME).is_file():
            remedy += f"; if it was changed on purpose, remove {MANIFEST_NAME} to skip this check"
        raise UserError(f"{folder}: {fault}; {remedy}")


def _with_tower_of(
    model: PreTrainedModel, folder: Path, saved_modules: list[str], encoder_path: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    """Swap the custom tower that an adapter was trained with into a base model that lacks it."""
    if not (folder / "config.json").is_file() or model.config.model_type in CUSTOM_MODEL_TYPES:
        return model
    vision_config = AutoConfig.from_pretrained(folder).vision_config
    if "visual.encoder" in saved_modules:
        # The adapter holds the encoder's weights: those that it started from are not needed.
        vision_config.encoder_weights = None
    elif encoder_path is not None:
        vision_config.encoder_weights = encoder_path
    elif vision_config.encoder_weights is None:
        raise UserError(
            f"{folder} neither holds the weights of its encoder {vision_config.encoder} nor names a file of them; "
            "pass their path to load_checkpoint as encoder_path"
        )
    if trust_remote_code:
        trust_encoder_file(vision_config.encoder)
    try:
        return swap_vision_tower(model, vision_config)
    except UserError as error:
        raise UserError(
            f"the encoder of {folder}: {error}; pass its new path to load_checkpoint as encoder_path"
        ) from None

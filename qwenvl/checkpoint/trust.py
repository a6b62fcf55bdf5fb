"""Refuse what would run somebody else's code: encoders in Python files, `auto_map`, pickles."""

import contextlib
import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from qwenvl.errors import UserError
from qwenvl.vision.registry import FILE_FORM

_REMEDY = "if you trust it, load_checkpoint(..., trust_remote_code=True) or --trust_remote_code True runs it"
# The configurations of which Transformers and PEFT make classes.
_CONFIG_NAMES = (
    "config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model*.bin")
# The classes beside PyTorch's own that DeepSpeed pickles into its checkpoints, and NumPy's into random states. They
# hold numbers and names; none does anything when it is made.
_PLAIN_CLASSES = (
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.dtypes", "UInt32DType"),
    ("numpy._core.multiarray", "_reconstruct"),
)


def refuse_foreign_code(
    name_or_path: str | Path, trust_remote_code: bool = False, *, cache_dir: str | None = None
) -> None:
    """Raise `UserError` if loading this model, adapter or processor would run code that comes with it.

    To be called before anything of a folder (or hub name) is loaded. Code is an encoder of the form `file.py:Class`,
    an `auto_map` and, in an adapter, a module to import. Weights that are pickles alone are refused in any case:
    nothing here reads them.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        _refuse_pickled_weights(folder)
    if trust_remote_code:
        return
    for name, config in _configs(name_or_path, cache_dir):
        vision_config = config.get("vision_config")
        encoder = vision_config.get("encoder") if isinstance(vision_config, dict) else None
        if isinstance(encoder, str) and FILE_FORM in encoder:
            raise UserError(
                f"{name_or_path}: its {name} names an encoder in a Python file, {encoder}, and loading it would run "
                f"that file; {_REMEDY}"
            )
        if _holds_key(config, "auto_map"):
            raise UserError(f"{name_or_path}: its {name} names code of its own (`auto_map`); {_REMEDY}")
        if config.get("megatron_config"):
            raise UserError(
                f"{name_or_path}: its {name} names a module to import (`megatron_core` "
                f"{config.get('megatron_core')!r}); {_REMEDY}"
            )


def refuse_foreign_pickles(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise `UserError` for the first pickle of a checkpoint to resume from that holds more than numbers and names.

    DeepSpeed and the Trainer unpickle the optimizer's, schedule's and random states. Each is first read by PyTorch's
    restricted unpickler, which makes no object and calls no function but those that it knows and `_PLAIN_CLASSES`; the
    tensors stay on the disk.
    """
    if trust_remote_code:
        return
    paths = sorted([*folder.rglob("*.pt"), *folder.rglob("*.pth")])
    by_deepspeed = any(path.parent != folder for path in paths)
    with torch.serialization.safe_globals(list(_found_plain_classes(by_deepspeed))), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols: what is not understood is refused
        for path in paths:
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # whatever a hostile or broken pickle leads to
                reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "it cannot be read")
                raise UserError(
                    f"{path}: a pickle of more than numbers and names ({' '.join(reason.split())}), which may run code "
                    "when it is loaded; resume from a checkpoint of your own, or, if you trust it, add "
                    "--trust_remote_code True"
                ) from None


def _refuse_pickled_weights(folder: Path) -> None:
    pickled = [path.name for pattern in _PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))]
    if pickled and not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: its weights are a pickle, {pickled[0]}, which may run code when it is loaded; get the model as "
            ".safetensors"
        )


def _configs(name_or_path: str | Path, cache_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = Path(name_or_path)
    if not folder.is_dir():
        # On the hub; what is not there, or no model, the loader says.
        with contextlib.suppress(OSError, ValueError):
            yield "config.json", PreTrainedConfig.get_config_dict(str(name_or_path), cache_dir=cache_dir)[0]
        return
    for name in _CONFIG_NAMES:
        if (folder / name).is_file():
            try:
                config = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise UserError(f"{folder}: {name} is no valid JSON") from None
            if not isinstance(config, dict):
                raise UserError(f"{folder}: {name} is no JSON object")
            yield name, config


def _holds_key(value: Any, key: str) -> bool:
    """Whether a dict of this JSON value, at any depth, has an entry that is not empty under a key."""
    if isinstance(value, dict):
        return bool(value.get(key)) or any(_holds_key(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_holds_key(inner, key) for inner in value)


def _found_plain_classes(by_deepspeed: bool) -> Iterator[Any]:
    """Yield the classes of `_PLAIN_CLASSES`, DeepSpeed's where it has written: its import takes seconds."""
    for module, name in _PLAIN_CLASSES:
        if by_deepspeed or not module.startswith("deepspeed."):
            with contextlib.suppress(ImportError, AttributeError):
                yield getattr(importlib.import_module(module), name)

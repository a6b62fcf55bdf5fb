"""Refuse files that would run foreign code: encoders in Python files, `auto_map`, pickles."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qwenvl.errors import UserError
from qwenvl.utils.json_text import read_json
from qwenvl.vision.trust import FILE_FORM

_REMEDY = "if you trust it, load_checkpoint(..., trust_remote_code=True) or --trust_remote_code True allows it"
# The configurations from which Transformers and PEFT build objects.
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
# The classes beside PyTorch's own that DeepSpeed pickles into its checkpoints, and NumPy's in random states. They hold
# numbers and names; none has an effect when it is created.
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


def refuse_foreign_code(folder: str | Path, trust_remote_code: bool = False) -> None:
    """Raise `UserError` if loading the model, adapter or processor of a folder would run code that comes with it.

    Call it before anything of the folder is loaded; a hub name passes, its downloaded configuration is checked by
    `refuse_code_in_config`. Code is an encoder of the form `file.py:Class`, an `auto_map` and, in an adapter, a module
    to import. Pickled weights without safetensors are refused in any case: nothing here reads them.
    """
    folder = Path(folder)
    refuse_pickled_weights(folder)
    for name in () if trust_remote_code else _CONFIG_NAMES:
        if (folder / name).is_file():
            config = read_json(folder / name, remedy="copy it again")
            refuse_code_in_config(str(folder), name, config)


def refuse_code_in_config(name_or_path: str, name: str, config: dict[str, Any]) -> None:
    """Raise `UserError` if a configuration, the content of the file `name`, names code to run."""
    vision_config = config.get("vision_config")
    encoder = vision_config.get("encoder") if isinstance(vision_config, dict) else None
    if isinstance(encoder, str) and FILE_FORM in encoder:
        raise UserError(
            f"{name_or_path}: its {name} names an encoder in a Python file, {encoder}, and loading it would run that "
            f"file; {_REMEDY}"
        )
    if _holds_key(config, "auto_map"):
        raise UserError(f"{name_or_path}: its {name} names code of its own (`auto_map`); {_REMEDY}")
    if config.get("megatron_config"):
        raise UserError(
            f"{name_or_path}: its {name} names a module to import (`megatron_core` {config.get('megatron_core')!r}); "
            f"{_REMEDY}"
        )


def refuse_pickled_weights(folder: Path) -> None:
    """Raise `UserError` for a model or adapter whose only weights are a pickle: nothing here reads one."""
    pickled = [path.name for pattern in _PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))]
    if pickled and not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: its weights are a pickle, {pickled[0]}, which may run code when it is loaded; get the model as "
            ".safetensors"
        )


def refuse_foreign_pickles(folder: Path, trust_remote_code: bool = False) -> None:
    """Raise `UserError` for the first pickle of a checkpoint to resume from that holds more than numbers and names.

    DeepSpeed and the Trainer unpickle the optimizer's, schedule's and random states. Each is first read by PyTorch's
    restricted unpickler, which creates objects only of the classes that it allows and of `_PLAIN_CLASSES`; the tensors
    stay on the disk.
    """
    if trust_remote_code:
        return
    if (folder / "latest").is_file():
        named = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if Path(named).name != named:
            raise UserError(f"{folder / 'latest'} names {named!r}, expected a folder beside it such as global_step100")
    # By depth, because `**` skips links to folders, which loading would follow.
    patterns = ["*/" * depth + f"*{suffix}" for depth in range(5) for suffix in (".pt", ".pth")]
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    by_deepspeed = any(path.parent != folder for path in paths)
    with torch.serialization.safe_globals(list(_iterate_plain_classes(by_deepspeed))), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: unsupported ones are refused below
        for path in paths:
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # a hostile or broken pickle may raise anything
                reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "it cannot be read")
                raise UserError(
                    f"{path}: a pickle that holds more than numbers and names ({' '.join(reason.split())}), which may "
                    "run code when it is loaded; resume from a checkpoint of your own, or, if you trust it, add "
                    "--trust_remote_code True"
                ) from None


def _holds_key(value: Any, key: str) -> bool:
    """Whether a dict of this JSON value, at any depth, has an entry that is not empty under a key."""
    if isinstance(value, dict):
        return bool(value.get(key)) or any(_holds_key(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_holds_key(inner, key) for inner in value)


def _iterate_plain_classes(by_deepspeed: bool) -> Iterator[Any]:
    """Yield the classes of `_PLAIN_CLASSES`, DeepSpeed's only if it wrote the checkpoint: its import takes seconds."""
    for module, name in _PLAIN_CLASSES:
        if by_deepspeed or not module.startswith("deepspeed."):
            with contextlib.suppress(ImportError, AttributeError):
                yield getattr(importlib.import_module(module), name)

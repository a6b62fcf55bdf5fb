"""Check that a base model's files can be trained from: whole files, and weights that are not quantized."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from qwenvl.errors import UserError

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer is text of less than 1024 bytes that starts so.
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
# What quantization is called in config.json: by Transformers, by older compressed-tensors, and by MLX.
_QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
# Files of their own, beside a config.json that says nothing: ModelOpt's, AutoGPTQ's and AutoAWQ's.
_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def refuse_pointers(name_or_path: str | Path) -> None:
    """Raise `UserError` if a file, or files of a folder, are pointers of Git LFS, left by a clone without it.

    The name of a model on the hub passes.
    """
    path = Path(name_or_path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pointers = [file.name for file in files if is_pointer(file)]
    if pointers:
        names = pointers[0] + (f" and {len(pointers) - 1} more" if len(pointers) > 1 else "")
        raise UserError(
            f"{name_or_path} holds pointers of Git LFS instead of files ({names}); run `git lfs install && git lfs "
            "pull` in the folder, or download it with `hf download ORG/MODEL --local-dir FOLDER`"
        )


def is_pointer(file: Path) -> bool:
    """Whether a file is a pointer of Git LFS, which names what should be in its place."""
    try:
        if not file.is_file() or file.stat().st_size >= _POINTER_BYTES:
            return False
        return file.read_bytes().startswith(_POINTER_START)
    except OSError:
        return False  # whoever needs the file says what is wrong with it


def refuse_quantized(name_or_path: str, config: PreTrainedConfig) -> None:
    """Raise `UserError` if a model's weights are quantized, in whole or in part."""
    settings = _quantization_settings(config)
    if settings is not None:
        method = settings.get("quant_method") or settings.get("quant_algo") or _describe_bits(settings)
    else:
        method = next((name for name in _QUANTIZATION_FILES if (Path(name_or_path) / name).is_file()), None)
    if method is None:
        return
    raise UserError(
        f"{name_or_path} holds quantized weights ({method}), which this training cannot use; take the model that they "
        "were made from, for example Qwen/Qwen3-VL-4B-Instruct (--gradient_checkpointing True and --deepspeed "
        "scripts/zero3.json save memory)"
    )


def _quantization_settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the settings of quantization in a configuration or in that of a part, or None if there are none."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in parts:
        for key in _QUANTIZATION_KEYS:
            settings = getattr(part, key, None)
            if isinstance(settings, str):
                return {"quant_method": settings}
            if settings:
                return settings if isinstance(settings, dict) else settings.to_dict()
    return None


def _describe_bits(settings: dict[str, Any]) -> str:
    for bits in (4, 8):
        if settings.get(f"load_in_{bits}bit"):
            return f"bitsandbytes, {bits} bit"
    return f"{settings['bits']} bit" if "bits" in settings else "see its config.json"

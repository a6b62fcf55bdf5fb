"""Check that a base model's files can be trained from: complete files, and weights that are not quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin

from qwenvl.errors import UserError
from qwenvl.model.structure import find_broken_weights

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer is text of less than 1024 bytes that starts so.
_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
# What quantization is called in config.json: by Transformers, by older compressed-tensors, and by MLX.
_QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
# Separate files, where config.json does not mention it: ModelOpt's, AutoGPTQ's and AutoAWQ's.
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
    """Whether a file is a pointer of Git LFS instead of the file itself."""
    try:
        if not file.is_file() or file.stat().st_size >= _POINTER_BYTES:
            return False
        return file.read_bytes().startswith(_POINTER_START)
    except OSError:
        return False  # the loader that needs the file reports the error


def refuse_broken_weights(name_or_path: str | Path) -> None:
    """Raise `UserError` if weights in a folder are truncated or missing, as after a broken download."""
    fault = find_broken_weights(Path(name_or_path)) if Path(name_or_path).is_dir() else None
    if fault is not None:
        raise UserError(f"{name_or_path}: {fault}; copy or download it again")


def refuse_other_weights(name_or_path: str, loading_info: Mapping[str, Any]) -> None:
    """Raise `UserError` if parts of a loaded model are missing from its files, or have another shape there.

    `loading_info` is what `from_pretrained(output_loading_info=True)` returns; such parts have random weights.
    """
    missing, mismatched = (sorted(loading_info[kind], key=str) for kind in ("missing_keys", "mismatched_keys"))
    if missing:
        raise UserError(
            f"{name_or_path}: its weights lack {missing[0]}{_and_more(missing)}, which config.json asks for; get the "
            "config.json and the weights of one model"
        )
    if mismatched:
        name, saved, asked = mismatched[0]
        raise UserError(
            f"{name_or_path}: {name} has the shape {list(saved)}{_and_more(mismatched)}, but config.json asks for "
            f"{list(asked)}; get the config.json and the weights of one model"
        )


def refuse_other_processor(name_or_path: str, config: PreTrainedConfig, processor: ProcessorMixin) -> None:
    """Raise `UserError` if a processor's patch sizes are not those of a native Qwen3-VL."""
    vision = config.vision_config
    if hasattr(vision, "encoder"):
        return  # a custom tower, whose processor is planned with it
    for name, asked in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size),
    ):
        for file, part in (
            ("preprocessor_config.json", processor.image_processor),
            ("video_preprocessor_config.json", processor.video_processor),
        ):
            if getattr(part, name) != asked:
                raise UserError(
                    f"{name_or_path}: {file} has {name} {getattr(part, name)}, its config.json {asked}; get the files "
                    "of one model"
                )


def _and_more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


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
        f"{name_or_path} holds quantized weights ({method}), which this training cannot use; use the model that they "
        "were made from, for example Qwen/Qwen3-VL-4B-Instruct (--frozen_weights fp8 or nf4 quantizes it for the "
        "training)"
    )


def _quantization_settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """Return the settings of quantization in a configuration or in one of its parts, None if there are none."""
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

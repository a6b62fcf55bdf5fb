"""Write the model card of a checkpoint: base model, training data, arguments, scores."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from qwenvl.vision.trust import FILE_FORM

CARD_NAME = "README.md"
_MAIN_ARGUMENTS = (
    *("tune_mm_llm", "tune_mm_mlp", "tune_mm_vision", "lora_enable", "lora_r", "lora_alpha", "lora_target_modules"),
    "frozen_weights",
    *("learning_rate", "mm_projector_lr", "vision_tower_lr", "num_train_epochs", "max_steps", "model_max_length"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "data_packing", "bf16", "fp16"),
    *("min_pixels", "max_pixels", "seed"),
)
_TITLE = "Fine-tuned Qwen3-VL"


def write_model_card(folder: Path, arguments: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]]) -> None:
    """Write the card into a checkpoint, replacing PEFT's template or an older card atomically.

    `arguments` are those of run_arguments.json, `log_history` is the Trainer's.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    unfinished = folder / f".{CARD_NAME}"
    unfinished.write_text(model_card(arguments, log_history, is_adapter=is_adapter), encoding="utf-8")
    os.replace(unfinished, folder / CARD_NAME)


def model_card(arguments: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]], *, is_adapter: bool) -> str:
    """Return the card as Markdown with YAML front matter."""
    base = str(arguments.get("model_name_or_path"))
    data = ModelCardData(
        # The hub takes no paths: a local base model is named in the text only.
        base_model=None if Path(base).exists() else base,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["qwen3-vl", *(["lora"] if arguments.get("lora_enable") else [])],
    )
    sections = [f"---\n{data.to_yaml()}\n---", f"# {_TITLE}", "## Model", _table(_model_rows(arguments, is_adapter))]
    sections += ["## Training", _table({name: arguments[name] for name in _MAIN_ARGUMENTS if name in arguments})]
    sections.append("All arguments, and the values that took effect, are in `run_arguments.json`.")
    scores = _find_last_scores(log_history)
    if scores:
        sections += ["## Scores", _table(scores)]
    sections += ["## How to load", _loading_example(arguments)]
    return "\n\n".join(sections) + "\n"


def _loading_example(arguments: Mapping[str, Any]) -> str:
    # An encoder in a Python file is code, which runs only with the reader's consent.
    is_code = FILE_FORM in (arguments.get("custom_vision_encoder") or "")
    trust = ", trust_remote_code=True" if is_code else ""
    return (
        "```python\nfrom qwenvl import load_checkpoint\n\n"
        f'model, processor = load_checkpoint("path/of/this/folder"{trust})\n```'
    )


def _model_rows(arguments: Mapping[str, Any], is_adapter: bool) -> dict[str, Any]:
    encoder = arguments.get("custom_vision_encoder")
    rows = {
        "base model": arguments.get("model_name_or_path"),
        "files": "adapter of the base model" if is_adapter else "whole model",
        "vision encoder": encoder or "the base model's",
        "merger": arguments.get("vision_merger") if encoder else "the base model's",
        "encoder weights": arguments.get("custom_vision_pretrained_path"),
        "start of the merger": arguments.get("vision_merger_path"),
        "datasets": arguments.get("dataset_use"),
        "datasets for evaluation": arguments.get("eval_dataset_use"),
    }
    return {name: value for name, value in rows.items() if value}


def _find_last_scores(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the scores of the last evaluation with its step, nothing if there was none."""
    last = next((entry for entry in reversed(log_history) if "eval_loss" in entry), None)
    if last is None:
        return {}
    scores = {name: f"{last[name]:.4f}" for name in ("eval_loss", "eval_token_accuracy") if name in last}
    return {"step": last["step"], **scores}


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"| {name} | {' '.join(text.split()).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)

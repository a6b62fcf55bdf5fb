"""Fine-tune Qwen3-VL on your own images and text, with its own vision encoder or one of your choice."""

from typing import Any

__all__ = ["load_checkpoint"]


def __getattr__(name: str) -> Any:
    # Not imported at once: PyTorch and Transformers take seconds, and the data tools need neither.
    if name == "load_checkpoint":
        from qwenvl.checkpoint.load import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

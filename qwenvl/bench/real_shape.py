"""Build folders with the true shape of Qwen3-VL-4B and 8B and random weights, for measuring speed and memory."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from qwenvl.bench.standin import build_standin

_TEXT = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "initializer_range": 0.02,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
_VISION = {"num_heads": 16, "num_position_embeddings": 2304, "initializer_range": 0.02}
# https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct and -8B-Instruct, config.json
SHAPES = {
    "4b": {
        "text": {"hidden_size": 2560, "intermediate_size": 9728},
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tied": True,
    },
    "8b": {
        "text": {"hidden_size": 4096, "intermediate_size": 12288},
        "vision": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        "tied": False,
    },
}


def real_shape_config(folder: str | Path, shape: str) -> PreTrainedConfig:
    """Return the configuration of the stand-in in `folder` with the sizes of Qwen3-VL-4B ("4b") or 8B ("8b")."""
    config = AutoConfig.from_pretrained(folder)
    sizes = SHAPES[shape]
    for name, value in (_TEXT | sizes["text"]).items():
        setattr(config.text_config, name, value)
    for name, value in (_VISION | sizes["vision"]).items():
        setattr(config.vision_config, name, value)
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = sizes["tied"]
    return config


def build_real_shape(folder: str | Path, shape: str) -> Path:
    """Write a folder of the shape of Qwen3-VL-4B ("4b") or 8B ("8b"), bf16, with the stand-in's tokenizer.

    It takes 9 or 18 GB on disk. The weights are drawn on the GPU if there is one. Returns the folder.
    """
    folder = build_standin(folder)
    config = real_shape_config(folder, shape)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder

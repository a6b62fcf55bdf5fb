"""Flags of the model: its name, the trained parts, the adapter and the vision encoder."""

from dataclasses import dataclass, field
from typing import Literal

import transformers

from qwenvl.errors import UserError
from qwenvl.model.attention import BACKENDS
from qwenvl.vision.options import OPTION_FLAGS, InputMode, MergerName, ResizePolicy, option_flag

# Flags that only affect a custom encoder, and that a continued run must repeat.
CUSTOM_VISION_FLAGS = ("custom_vision_pretrained_path", *OPTION_FLAGS, "save_encoder")

FrozenWeights = Literal["bf16", "fp8", "nf4"]


@dataclass
class ModelArguments:
    """Which model is trained and which of its parts."""

    model_name_or_path: str = field(
        default="Qwen/Qwen3-VL-4B-Instruct",
        metadata={"help": "Folder or hub name of a Qwen3-VL (dense or MoE, Instruct or Thinking)."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Allow the configuration of --model_name_or_path to run an encoder file (file.py:Class); "
            "without it such a model is refused. The file of --custom_vision_encoder needs no permission."
        },
    )
    tune_mm_llm: bool = field(
        default=False,
        metadata={"help": "Train the language model: by LoRA with --lora_enable True, else all of it."},
    )
    tune_mm_mlp: bool = field(default=False, metadata={"help": "Train the merger and all DeepStack mergers."})
    tune_mm_vision: bool = field(default=False, metadata={"help": "Train the vision encoder."})
    attn_implementation: str = field(
        default="auto",
        metadata={
            "help": f"Attention backend: {', '.join(BACKENDS)}. auto uses flash-attn if installed, else PyTorch's "
            "variable-length kernel on a GPU, else sdpa."
        },
    )
    frozen_weights: FrozenWeights = field(
        default="bf16",
        metadata={
            "help": "How the language model's frozen linear layers are held. bf16: in the precision of training. fp8: "
            "a byte a weight, products in FP8 (GPUs of compute capability 8.9 or higher). nf4: half a byte, products "
            "in bf16 (extra quant)."
        },
    )
    custom_vision_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Swap the vision encoder: a registered name (python -m qwenvl.vision lists them), hf:org/model, "
            "timm:model_name, or path/to/file.py:ClassName."
        },
    )
    custom_vision_pretrained_path: str | None = field(
        default=None,
        metadata={"help": "Folder, hub name or file with the encoder's weights (default: the published ones)."},
    )
    custom_vision_input: InputMode = option_flag("input_mode")
    vision_layer: int = option_flag("layer")
    vision_final_norm: bool | None = option_flag("final_norm")
    vision_prefix_tokens: bool = option_flag("keep_prefix_tokens")
    vision_resize: ResizePolicy = option_flag("resize")
    vision_input_size: str | None = option_flag("input_size")
    vision_merger: MergerName = option_flag("merger")
    vision_merger_path: str | None = field(
        default=None, metadata={"help": "Start from the merger (and encoder, if trained) in this output folder."}
    )
    cache_vision_features: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps a frozen encoder's features, computed once per image."},
    )
    save_encoder: bool = field(
        default=False,
        metadata={"help": "Copy a frozen encoder into every checkpoint; otherwise only its name is recorded."},
    )

    def __post_init__(self) -> None:
        if self.custom_vision_encoder is not None:
            return
        for name in CUSTOM_VISION_FLAGS:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(
                    f"--{name} {getattr(self, name)} is for a custom encoder; name one by --custom_vision_encoder"
                )


@dataclass
class AdapterArguments:
    """Whether the language model is trained by LoRA, and how."""

    lora_enable: bool = field(default=False, metadata={"help": "Train the language model by LoRA."})
    lora_r: int = field(default=64, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=128, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA matrices."})
    lora_target_modules: str = field(
        default="q_proj,k_proj,v_proj,o_proj",
        metadata={"help": "Comma-separated linear layers of the language model that get LoRA, or all-linear."},
    )


@dataclass
class BuildArguments(AdapterArguments, transformers.TrainingArguments):
    """Transformers' training arguments with those of ours that `build_model` needs."""

    cache_dir: str | None = field(default=None, metadata={"help": "Folder for models downloaded from the hub."})
    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the merger (default: --learning_rate)."}
    )

    @property
    def half_precision(self) -> bool:
        """Whether the model computes in bf16 or fp16."""
        return bool(self.bf16 or self.fp16)

    @property
    def merger_learning_rate(self) -> float:
        """The learning rate of the merger if it is trained."""
        return self.learning_rate if self.mm_projector_lr is None else self.mm_projector_lr

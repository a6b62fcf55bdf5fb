"""Owns the command line of training: every flag with its help, and the rules between flags."""

import dataclasses
import difflib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import transformers
from transformers import HfArgumentParser
from transformers.integrations import INTEGRATION_TO_CALLBACK

from qwenvl.data.media.images import MAX_IMAGE_MEGAPIXELS, MEGAPIXEL
from qwenvl.data.pixel_limits import OFFICIAL_PIXEL_LIMITS
from qwenvl.errors import UserError
from qwenvl.model.attention import BACKENDS, resolve_attention
from qwenvl.train.flag_checks import check_flags, check_machine, warn_of_worst_model
from qwenvl.train.flag_rules import split_names
from qwenvl.utils.distributed import is_one_of_several_without_gpu, join_deepspeed_processes_on_cpu

CUSTOM_VISION_FLAGS = (
    "custom_vision_pretrained_path",
    "custom_vision_input",
    "vision_layer",
    "vision_final_norm",
    "vision_prefix_tokens",
    "vision_resize",
    "vision_input_size",
    "vision_merger",
    "save_encoder",
)


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
            "help": "Let the encoder file run that the configuration of --model_name_or_path names (file.py:Class); "
            "without it such a model is refused. The file of --custom_vision_encoder needs no leave."
        },
    )
    tune_mm_llm: bool = field(
        default=False,
        metadata={"help": "Train the language model: by LoRA with --lora_enable True, wholly without it."},
    )
    tune_mm_mlp: bool = field(default=False, metadata={"help": "Train the merger and all DeepStack mergers."})
    tune_mm_vision: bool = field(default=False, metadata={"help": "Train the vision encoder."})
    attn_implementation: str = field(
        default="auto",
        metadata={
            "help": f"Attention backend: {', '.join(BACKENDS)}. auto takes flash-attn if installed, else PyTorch's "
            "variable-length kernel on a GPU, else sdpa."
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
        default=None, metadata={"help": "Folder, hub name or file with the encoder's weights (default: its published)."}
    )
    custom_vision_input: str = field(
        default="native",
        metadata={"help": "native: the encoder's own preprocessing; qwen: the official processor's pixel values."},
    )
    vision_layer: int = field(
        default=-1, metadata={"help": "Layer whose features are taken: -1 the last, -2 that before."}
    )
    vision_final_norm: bool | None = field(
        default=None, metadata={"help": "Apply the encoder's final norm (default: after the last layer alone)."}
    )
    vision_prefix_tokens: bool = field(default=False, metadata={"help": "Keep CLS and register tokens."})
    vision_resize: str = field(
        default="encoder",
        metadata={"help": "How a picture meets the input size: encoder (as published), pad, squash, crop, native."},
    )
    vision_input_size: str | None = field(
        default=None, metadata={"help": "Input size of the encoder in pixels: 518, or 518x1036 for height x width."}
    )
    vision_merger: str = field(default="simple", metadata={"help": "simple (one linear layer), norm_linear or mlp2."})
    vision_merger_path: str | None = field(
        default=None, metadata={"help": "Start from the merger (and encoder, if trained) in this output folder."}
    )
    cache_vision_features: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps a frozen encoder's features, computed once a picture."},
    )
    save_encoder: bool = field(
        default=False, metadata={"help": "Copy a frozen encoder into every checkpoint; otherwise it is named there."}
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
class DataArguments:
    """Which samples are read and how they are turned into batches."""

    dataset_use: str = field(
        default="",
        metadata={
            "help": "Comma-separated data sets: names registered in qwenvl/data/__init__.py, or paths of .json/.jsonl "
            "files; name%%50 takes half of one, drawn with --data_seed."
        },
    )
    eval_dataset_use: str = field(
        default="", metadata={"help": "Data sets, named likewise, for loss and token accuracy during training."}
    )
    data_flatten: bool = field(default=False, metadata={"help": "Concatenate the batch into one row, without padding."})
    data_packing: bool = field(
        default=False,
        metadata={"help": "Fill rows up to --model_max_length with whole samples, planned from image headers."},
    )
    thinking_turns: Literal["each", "last"] = field(
        default="each",
        metadata={
            "help": "For chats whose earlier answers hold thoughts, which a Thinking model's template leaves out: each "
            "makes one sample for each question, last learns the answer to the last one alone."
        },
    )
    max_pixels: int | None = field(default=None, metadata={"help": "Most pixels of an image after resizing (451584)."})
    min_pixels: int | None = field(default=None, metadata={"help": "Fewest pixels of an image after resizing (12544)."})
    video_fps: float = field(default=2.0, metadata={"help": "Frames sampled per second of video."})
    video_max_frames: int = field(default=8, metadata={"help": "Most frames sampled from a video."})
    video_min_frames: int = field(default=4, metadata={"help": "Fewest frames sampled from a video."})
    video_max_pixels: int | None = field(
        default=None, metadata={"help": "Most pixels of a video after resizing, over all its frames (802816)."}
    )
    video_min_pixels: int | None = field(
        default=None, metadata={"help": "Fewest pixels of a video after resizing, over all its frames (200704)."}
    )
    max_image_megapixels: int = field(
        default=MAX_IMAGE_MEGAPIXELS,
        metadata={"help": "Refuse an image file of more megapixels, each of 1,048,576 pixels (64 is 8192 x 8192)."},
    )
    bad_sample_policy: str = field(
        default="error",
        metadata={"help": "error: stop at the first unusable sample; skip: log it, count it and go on."},
    )
    max_bad_samples: int = field(
        default=100,
        metadata={"help": "Under --bad_sample_policy skip, stop when more samples than this are unusable."},
    )
    media_cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps the image sizes read from headers (default ~/.cache/qwenvl)."},
    )

    def __post_init__(self) -> None:
        if self.bad_sample_policy not in ("error", "skip"):
            raise UserError(f"--bad_sample_policy {self.bad_sample_policy!r} is unknown; choose error or skip")
        if self.max_image_megapixels < 1:
            raise UserError(f"--max_image_megapixels {self.max_image_megapixels}: give 1 or more")
        if self.thinking_turns not in ("each", "last"):
            raise UserError(f"--thinking_turns {self.thinking_turns!r} is unknown; choose each or last")
        if self.max_bad_samples < 0:
            raise UserError(f"--max_bad_samples {self.max_bad_samples}: give 0 or more")
        if self.video_min_frames > self.video_max_frames:
            raise UserError(
                f"--video_min_frames {self.video_min_frames} is above --video_max_frames {self.video_max_frames}"
            )
        for name in OFFICIAL_PIXEL_LIMITS:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)}: give a number of pixels above 0")
        if self.video_min_frames < 2:
            raise UserError(
                f"--video_min_frames {self.video_min_frames}: Qwen3-VL reads frames in pairs; give 2 or more"
            )
        if self.video_fps <= 0:
            raise UserError(f"--video_fps {self.video_fps}: give a number above 0")

    @property
    def max_image_pixels(self) -> int:
        """The most pixels that an image file may have."""
        return self.max_image_megapixels * MEGAPIXEL


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Transformers' training arguments, with the official repository's and ours beside them."""

    output_dir: str = field(default="", metadata={"help": "Folder that gets the checkpoints and the trained model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for models downloaded from the hub."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, one of Transformers' names."})
    model_max_length: int = field(
        default=512, metadata={"help": "Most tokens in a sample, and the size of a pack with --data_packing."}
    )
    mm_projector_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the merger (default: --learning_rate)."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision encoder (default: --learning_rate)."}
    )
    lora_enable: bool = field(default=False, metadata={"help": "Train the language model by LoRA."})
    lora_r: int = field(default=64, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=128, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the LoRA matrices."})
    lora_target_modules: str = field(
        default="q_proj,k_proj,v_proj,o_proj",
        metadata={"help": "Comma-separated linear layers of the language model that get LoRA, or all-linear."},
    )
    torch_compile: bool = field(
        default=False,
        metadata={"help": "Compile each layer: after a minute, steps are much faster on a GPU."},
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Share of the steps over which the learning rate rises."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Read the data, build the model without weights, print what a run would do, and end."},
    )
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Where metrics go, with commas between several: tensorboard,wandb; or all, or none."},
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    # Transformers' defaults of these are not what is done here, and a flag that is not obeyed is refused.
    do_train: bool = field(default=True, metadata={"help": "Train, as this program always does."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite, as this program never does."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not of use here: samples have no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient: every batch reaches all of them."}
    )

    def __post_init__(self) -> None:
        self._check_deepspeed_file()
        if self.warmup_ratio is not None:
            if self.warmup_steps:
                raise UserError("give --warmup_ratio or --warmup_steps, not both")
            self.warmup_steps = self.warmup_ratio
        self.report_to = _tracker_names(self.report_to)
        # The official repository's name; Transformers 5.23 warns of each use of it. Can go when it drops the old name.
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        if self.activation_checkpointing and self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}
        self.label_names = ["labels"]
        if is_one_of_several_without_gpu():
            # Left to itself, Accelerate joins processes by their GPUs, and without any they would all train alone.
            if self.deepspeed:
                join_deepspeed_processes_on_cpu()
                self.accelerator_config = {"use_configured_state": True}
            else:
                self.use_cpu = True
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise UserError(f"training arguments: {' '.join(str(error).split())}") from error

    def _check_deepspeed_file(self) -> None:
        if self.deepspeed and self.use_cpu:
            raise UserError(
                "--use_cpu True turns --deepspeed off; leave --use_cpu out (on a machine without a GPU, set the "
                "environment variable DS_ACCELERATOR=cpu)"
            )
        if not isinstance(self.deepspeed, str):
            return
        path = Path(self.deepspeed)
        is_text = self.deepspeed.startswith("{")
        if not is_text and not path.is_file():
            raise UserError(f"--deepspeed {self.deepspeed}: no such file; scripts/ has zero2.json and zero3.json")
        try:
            config = json.loads(self.deepspeed if is_text else path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"--deepspeed {self.deepspeed} is not valid JSON: {error}") from None
        if not isinstance(config, dict) or "zero_optimization" not in config:
            raise UserError(
                f"--deepspeed {self.deepspeed} has no `zero_optimization` section; start from scripts/zero2.json"
            )
        for section in ("optimizer", "scheduler"):
            if section in config:
                raise UserError(
                    f"--deepspeed {self.deepspeed} has the section `{section}`, which would pass over the learning "
                    "rates of the components; take it out and use --optim, --learning_rate and --lr_scheduler_type"
                )
        # Without a launcher's variables DeepSpeed asks MPI for its processes, by a package that is not needed else.
        if "RANK" not in os.environ and importlib.util.find_spec("mpi4py") is None:
            raise UserError(
                "--deepspeed needs a launcher, for one process too: python -m qwenvl.train.launch --standalone "
                "--nproc_per_node 1 qwenvl/train/train_qwen.py ..., or a script of scripts/"
            )

    @property
    def half_precision(self) -> bool:
        """Whether the model computes in bf16 or fp16."""
        return bool(self.bf16 or self.fp16)

    @property
    def component_learning_rates(self) -> dict[str, float]:
        """The learning rate that each component gets if it is trained."""
        return {
            "vision": self.learning_rate if self.vision_tower_lr is None else self.vision_tower_lr,
            "merger": self.learning_rate if self.mm_projector_lr is None else self.mm_projector_lr,
            "llm": self.learning_rate,
        }


def _tracker_names(report_to: str | list[str] | None) -> list[str]:
    """Return the names of `--report_to`; raises `UserError` for those that Transformers does not know."""
    names = split_names(report_to)
    for name in names:
        if name not in (*INTEGRATION_TO_CALLBACK, "all", "none"):
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK) or sorted(INTEGRATION_TO_CALLBACK)
            raise UserError(f"--report_to {name} is unknown; choose from {', '.join(near)}, all or none")
        if name in ("all", "none") and len(names) > 1:
            raise UserError(f"--report_to {','.join(names)}: {name} stands alone")
    return names


class FlagParser(HfArgumentParser):
    """Transformers' parser of command lines, which says in one line what is wrong with one.

    No flag can be shortened: what a shortened one means would change with every flag that is added.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        """Add a flag; text is taken for those whose type no text can be turned into, all of them refused."""
        if names[0] in ("--liger_kernel_config", "--parallelism_config"):
            kwargs["type"] = str
        return super().add_argument(*names, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Read a command line; raises `UserError` for flags that there are not, or that would have no effect."""
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0].partition("=")[0])
        check_flags(vars(given), self.get_default)
        return given, unknown

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of printing the whole usage."""
        raise UserError(f"{message}; --help lists all flags")

    def _refuse(self, flag: str) -> NoReturn:
        known = [f"--{each.name}" for kind in self.dataclass_types for each in dataclasses.fields(kind)]
        name = "--" + flag.lstrip("-").replace("-", "_")
        nearest = [each for each in known if each.startswith(name)][:6] or difflib.get_close_matches(name, known)
        remedy = f"did you mean {' or '.join(nearest)}?" if nearest else "--help lists all flags"
        raise UserError(f"{flag} is no flag of this program; {remedy}")


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read the command line, `argv` or that of the process.

    Raises `UserError` for what it does not understand, and for flags that would have no effect.
    """
    return FlagParser((ModelArguments, DataArguments, TrainingArguments)).parse_args_into_dataclasses(argv)


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise `UserError` where flags contradict each other or this machine, beyond what a command line alone tells."""
    if not data_args.dataset_use:
        raise UserError("--dataset_use is missing: name a registered data set or the path of a .json/.jsonl file")
    if not training_args.output_dir:
        raise UserError("--output_dir is missing: name the folder that gets the checkpoints")
    check_machine(training_args)
    warn_of_worst_model(training_args)
    if not (model_args.tune_mm_llm or model_args.tune_mm_mlp or model_args.tune_mm_vision):
        raise UserError("nothing would be trained: set --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision to True")
    if model_args.custom_vision_encoder and not model_args.tune_mm_mlp and not model_args.vision_merger_path:
        raise UserError(
            "--tune_mm_mlp False would leave the fresh merger of --custom_vision_encoder at its random start; set it "
            "True, or give a trained merger with --vision_merger_path"
        )
    if model_args.cache_vision_features and model_args.tune_mm_vision:
        raise UserError(
            "--cache_vision_features keeps features of a frozen encoder, but --tune_mm_vision is True; leave one out"
        )
    resolve_attention(model_args.attn_implementation, training_args.half_precision)

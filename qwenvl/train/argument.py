"""Parse the command line of training: every flag with its help, and the rules between flags."""

import dataclasses
import difflib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser
from transformers.integrations import INTEGRATION_TO_CALLBACK

from qwenvl.data.arguments import DataArguments
from qwenvl.errors import UserError
from qwenvl.model.arguments import CUSTOM_VISION_FLAGS, BuildArguments, ModelArguments
from qwenvl.model.attention import resolve_attention
from qwenvl.model.frozen import check_frozen_weights
from qwenvl.train.flag_checks import check_flags, check_machine, check_samples_per_step, warn_of_worst_model
from qwenvl.train.flag_rules import read_choice, split_names
from qwenvl.utils.cli import OneLineErrors
from qwenvl.utils.distributed import is_one_of_several_without_gpu, join_deepspeed_processes_on_cpu
from qwenvl.utils.json_text import parse_json, read_json

__all__ = [
    "CUSTOM_VISION_FLAGS",
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "check_arguments",
    "parse_arguments",
]


@dataclass
class TrainingArguments(BuildArguments):
    """Transformers' training arguments, with the official repository's and ours beside them."""

    output_dir: str = field(default="", metadata={"help": "Folder for the checkpoints and the trained model."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, one of Transformers' names."})
    model_max_length: int = field(
        default=512, metadata={"help": "Maximum tokens of a sample, and the size of a pack with --data_packing."}
    )
    vision_tower_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision encoder (default: --learning_rate)."}
    )
    torch_compile: str = field(
        default="auto",
        metadata={
            "help": "Compile each layer, which takes a minute at the first step and makes all others much faster: "
            "True, False, or auto, which compiles on a GPU if the run is long enough to win by it."
        },
    )
    gradient_checkpointing: str = field(
        default="auto",
        metadata={
            "help": "Recompute each layer's activations in the backward pass, which saves most of the memory and costs "
            "a fifth of the speed: True, False, or auto, which does so on a GPU that has too little memory for them."
        },
    )
    samples_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Samples of an optimizer step, about, over all processes: sets --gradient_accumulation_steps so "
            "that what is learned does not depend on the size of a pack or the number of GPUs."
        },
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Fraction of the steps over which the learning rate warms up."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Read the data, build the model without weights, print the plan of the run, and exit."},
    )
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Trackers for metrics, comma-separated: tensorboard,wandb; or all, or none."},
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    # The defaults describe what this program does: it refuses a flag that it would ignore.
    do_train: bool = field(default=True, metadata={"help": "Train, as this program always does."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses, which this program never does."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used here: samples have no columns."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient: every batch uses all of them."}
    )

    def __post_init__(self) -> None:
        self._check_deepspeed_file()
        self._read_choices()
        if self.samples_per_step is not None:
            check_samples_per_step(self.samples_per_step, self.gradient_accumulation_steps)
        if self.warmup_ratio is not None:
            if self.warmup_steps:
                raise UserError("give --warmup_ratio or --warmup_steps, not both")
            self.warmup_steps = self.warmup_ratio
        self.report_to = _tracker_names(self.report_to)
        # The official scripts use the old name, of which Transformers warns. Can go when they use the new one:
        # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/training_args.py#L1533
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        if self.activation_checkpointing:
            self.checkpoint_activations()
        self.label_names = ["labels"]
        if is_one_of_several_without_gpu():
            # Accelerate finds no backend without a GPU unless it is told to use the CPU, and each process would train
            # alone. Can go when it tries gloo by itself:
            # https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/state.py#L800
            if self.deepspeed:
                join_deepspeed_processes_on_cpu()
                self.accelerator_config = {"use_configured_state": True}
            else:
                self.use_cpu = True
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise UserError(f"training arguments: {' '.join(str(error).split())}") from error

    def _read_choices(self) -> None:
        """Turn "auto" into False and a note that `train.plan` decides, because Transformers wants truth values."""
        compiles = read_choice("torch_compile", self.torch_compile)
        asks_for_more = self.torch_compile_backend is not None or self.torch_compile_mode is not None
        self.compiles_if_it_pays = compiles is None and not asks_for_more
        self.torch_compile = bool(compiles)
        checkpoints = read_choice("gradient_checkpointing", self.gradient_checkpointing)
        self.checkpoints_if_needed = checkpoints is None and self.activation_checkpointing is None
        self.gradient_checkpointing = bool(checkpoints)

    def checkpoint_activations(self) -> None:
        """Switch gradient checkpointing on, under both of its names."""
        self.gradient_checkpointing = self.activation_checkpointing = True
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = {"use_reentrant": False}

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
        read = parse_json if is_text else read_json
        config = read(self.deepspeed, name=f"--deepspeed {self.deepspeed}", remedy="start from scripts/zero2.json")
        if "zero_optimization" not in config:
            raise UserError(
                f"--deepspeed {self.deepspeed} has no `zero_optimization` section; start from scripts/zero2.json"
            )
        for section in ("optimizer", "scheduler"):
            if section in config:
                raise UserError(
                    f"--deepspeed {self.deepspeed} has the section `{section}`, which would override the learning "
                    "rates of the components; remove it and use --optim, --learning_rate and --lr_scheduler_type"
                )
        # Without a launcher's variables DeepSpeed looks for its processes by MPI, which needs an optional package. Can
        # go when it starts a single process without:
        # https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/comm/comm.py#L890
        if "RANK" not in os.environ and importlib.util.find_spec("mpi4py") is None:
            raise UserError(
                "--deepspeed needs a launcher, for one process too: python -m qwenvl.train.launch --standalone "
                "--nproc_per_node 1 qwenvl/train/train_qwen.py ..., or a script of scripts/"
            )

    @property
    def component_learning_rates(self) -> dict[str, float]:
        """The learning rate that each component gets if it is trained."""
        return {
            "vision": self.learning_rate if self.vision_tower_lr is None else self.vision_tower_lr,
            "merger": self.merger_learning_rate,
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
            raise UserError(f"--report_to {','.join(names)}: {name} cannot be combined with others")
    return names


class FlagParser(OneLineErrors, HfArgumentParser):
    """Transformers' parser of command lines, with errors of one line.

    Flags cannot be abbreviated: the meaning of an abbreviation would change with every flag that is added.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        """Add a flag; those whose type cannot be parsed from text, all of them refused, take text.

        Can go when Transformers' parser leaves them out: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/hf_argparser.py#L170
        """
        if names[0] in ("--liger_kernel_config", "--parallelism_config"):
            kwargs["type"] = str
        if names[0] in ("--torch_compile", "--gradient_checkpointing"):
            kwargs |= {"nargs": "?", "const": "True"}
        return super().add_argument(*names, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse a command line; raises `UserError` for unknown flags and for those that would have no effect."""
        given, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown[0].partition("=")[0])
        check_flags(vars(given), self.get_default)
        return given, unknown

    def _refuse(self, flag: str) -> NoReturn:
        known = [f"--{each.name}" for kind in self.dataclass_types for each in dataclasses.fields(kind)]
        name = "--" + flag.lstrip("-").replace("-", "_")
        nearest = [each for each in known if each.startswith(name)][:6] or difflib.get_close_matches(name, known)
        remedy = f"did you mean {' or '.join(nearest)}?" if nearest else "--help lists all flags"
        raise UserError(f"{flag} is not a flag of this program; {remedy}")


def parse_arguments(argv: list[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse the command line, `argv` or that of the process.

    Raises `UserError` for unknown flags, invalid values, and flags that would have no effect.
    """
    return FlagParser((ModelArguments, DataArguments, TrainingArguments)).parse_args_into_dataclasses(argv)


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Raise `UserError` where flags contradict each other or this machine, beyond what parsing alone can check."""
    if not data_args.dataset_use:
        raise UserError("--dataset_use is missing: name a registered dataset or the path of a .json/.jsonl file")
    if not training_args.output_dir:
        raise UserError("--output_dir is missing: name the folder for the checkpoints")
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
    check_frozen_weights(model_args, training_args, dry_run=training_args.dry_run)
    resolve_attention(model_args.attn_implementation, training_args.half_precision)

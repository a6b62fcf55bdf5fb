"""Parse the command line of training: every flag with its help, and the rules between flags."""

import dataclasses
import difflib
import importlib.util
import json
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
from qwenvl.train.flag_checks import check_flags, check_machine, check_samples_per_step, warn_of_worst_model
from qwenvl.train.flag_rules import split_names
from qwenvl.utils.cli import OneLineErrors
from qwenvl.utils.distributed import is_one_of_several_without_gpu, join_deepspeed_processes_on_cpu

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

    output_dir: str = field(default="", metadata={"help": "Folder that gets the checkpoints and the trained model."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, one of Transformers' names."})
    model_max_length: int = field(
        default=512, metadata={"help": "Most tokens in a sample, and the size of a pack with --data_packing."}
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
    samples_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Samples of an optimizer step, about, over all processes: sets --gradient_accumulation_steps so "
            "that what is learned does not depend on the size of a pack or the number of GPUs."
        },
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
        self._read_torch_compile()
        if self.samples_per_step is not None:
            check_samples_per_step(self.samples_per_step, self.gradient_accumulation_steps)
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

    def _read_torch_compile(self) -> None:
        """Turn "auto" into False and `compiles_if_it_pays`, because Transformers wants a truth value."""
        choice = str(self.torch_compile).lower()
        if choice not in ("auto", "true", "false"):
            raise UserError(f"--torch_compile {self.torch_compile}: expected auto, True or False")
        asks_for_more = self.torch_compile_backend is not None or self.torch_compile_mode is not None
        self.compiles_if_it_pays = choice == "auto" and not asks_for_more
        self.torch_compile = choice == "true"

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
            raise UserError(f"--report_to {','.join(names)}: {name} stands alone")
    return names


class FlagParser(OneLineErrors, HfArgumentParser):
    """Transformers' parser of command lines, which says in one line what is wrong with one.

    No flag can be shortened: what a shortened one means would change with every flag that is added.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> Any:
        """Add a flag; text is taken for those whose type no text can be turned into, all of them refused."""
        if names[0] in ("--liger_kernel_config", "--parallelism_config"):
            kwargs["type"] = str
        if names[0] == "--torch_compile":
            kwargs |= {"nargs": "?", "const": "True"}
        return super().add_argument(*names, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Read a command line; raises `UserError` for flags that there are not, or that would have no effect."""
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

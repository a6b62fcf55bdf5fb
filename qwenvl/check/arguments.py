"""Parse the command line of the pre-flight check: the flags of the training command, and its own beside them."""

import textwrap
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from accelerate.utils.deepspeed import HfDeepSpeedConfig

from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, FlagParser, ModelArguments, TrainingArguments
from qwenvl.train.memory import Sharding
from qwenvl.utils.cli import default_workers

# A check reads data and counts: it must also run where the GPUs, kernels and trackers of the run are not.
_WITHOUT_DEVICE = {"use_cpu": True, "deepspeed": None, "fsdp": None, "tf32": None, "report_to": "none"}


@dataclass
class CheckArguments:
    """What is checked beside the rules of training, and where the result goes."""

    out: str = field(
        metadata={
            "help": "Folder that gets problems.jsonl, clean.json (clean_NAME.json for each of several files, and "
            "eval_clean.json of the evaluation data) and token_lengths.png. The clean files can be trained on where "
            "they are."
        }
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace these files where they are there."})
    decode: Literal["header", "full"] = field(
        default="header",
        metadata={"help": "header: read the size of each medium; full: decode each picture and the sampled frames."},
    )
    box_space: Literal["relative", "absolute", "none"] = field(
        default="relative",
        metadata={
            "help": "What bbox_2d in answers counts in: 0 to 1000 across the picture (Qwen3-VL), or the picture's "
            "pixels; none: boxes are not checked."
        },
    )
    duplicates: Literal["answer", "record", "none"] = field(
        default="answer",
        metadata={
            "help": "A duplicate has the same pictures and the same answers (answer), or the same questions too "
            "(record: for sets with several questions about a picture); none: duplicates are left in."
        },
    )
    same_picture: Literal["content", "path"] = field(
        default="content", metadata={"help": "Two files are the same picture by their bytes, or by their path alone."}
    )
    allow_outside: bool = field(
        default=False, metadata={"help": "Accept paths that leave data_path through `..` or a link."}
    )
    processes: int = field(
        default=1, metadata={"help": "Processes (GPUs) of the run, for its steps per epoch and its memory."}
    )
    workers: int = field(default_factory=default_workers, metadata={"help": "Processes that decode (--decode full)."})

    def __post_init__(self) -> None:
        for name in ("processes", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give 1 or more")


class CheckFlags(NamedTuple):
    """All flags of a check; `sharding` is that of the run that is checked."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    check: CheckArguments
    sharding: Sharding

    @property
    def seed(self) -> int:
        """The seed of the order and of shares such as name%50, as in training."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed


class _CheckParser(FlagParser):
    """Tells its own options first and in full, and those of training by their names."""

    def format_help(self) -> str:
        """Return the help text: the check's own options, then the names of those of training."""
        own = FlagParser(
            (CheckArguments,),
            usage="python tools/check_data.py --dataset_use NAMES_OR_FILES --out FOLDER [options] [flags of training]",
            description="Check a dataset before it is trained on. Takes the flags of the training command as they are, "
            "so that lengths, batches, steps and memory are those of the run. Exit code: 0 clean, 1 problems, 2 wrong "
            "use.",
        )
        names = {
            f"--{each.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for each in fields(kind)
        }
        title = "flags of training, which `python -m qwenvl.train.train_qwen --help` explains:"
        flags = textwrap.fill(" ".join(sorted(names)), 100, initial_indent="  ", subsequent_indent="  ")
        return f"{own.format_help()}\n{title}\n{flags}\n"


def parse_check_arguments(argv: list[str] | None = None) -> CheckFlags:
    """Read the command line; every flag of training is known, and those that say nothing of data change nothing.

    Raises `UserError` for flags that contradict each other.
    """
    kinds = (ModelArguments, DataArguments, TrainingArguments, CheckArguments)
    parser = _CheckParser(kinds)
    given = vars(parser.parse_args(argv))
    model, data, training, check = (_filled(kind, given) for kind in kinds)
    stage = 0 if given["deepspeed"] is None else _zero_stage(given["deepspeed"])
    # The estimate of memory asks whether DeepSpeed keeps the float32 weights; nothing is set up by this.
    training.deepspeed = given["deepspeed"]
    model = replace(model, attn_implementation="sdpa")
    return CheckFlags(model, data, training, check, Sharding(check.processes, stage))


def _filled(kind: type, given: dict[str, Any]) -> Any:
    values = {each.name: given[each.name] for each in fields(kind) if each.init}
    return kind(**values | (_WITHOUT_DEVICE if kind is TrainingArguments else {}))


def _zero_stage(config: str) -> int:
    try:
        return HfDeepSpeedConfig(config).get_value("zero_optimization.stage", 0)
    except ValueError as error:
        raise UserError(f"--deepspeed {config}: {' '.join(str(error).split())}") from None

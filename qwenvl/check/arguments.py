"""Define the arguments of the pre-flight check."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from qwenvl.errors import UserError
from qwenvl.utils.cli import default_workers

if TYPE_CHECKING:
    # Not imported at run time: `--help` needs only CheckArguments, and Transformers' training arguments take seconds.
    from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
    from qwenvl.train.memory import Sharding


@dataclass
class CheckArguments:
    """What is checked in addition to the rules of training, and where the result is written."""

    out: str = field(
        metadata={
            "help": "Folder for problems.jsonl, clean.json (clean_NAME.json for each of several files, "
            "eval_clean.json for the evaluation data) and token_lengths.png. The clean files can be trained on in "
            "this folder."
        }
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the files of an earlier check in --out."})
    decode: Literal["header", "full"] = field(
        default="header",
        metadata={"help": "header: read the size of each medium; full: decode each image and the sampled frames."},
    )
    box_space: Literal["relative", "absolute", "none"] = field(
        default="relative",
        metadata={
            "help": "Coordinates of bbox_2d in answers: 0 to 1000 across the image (relative, as in Qwen3-VL) or "
            "pixels of the image (absolute); none: do not check boxes."
        },
    )
    duplicates: Literal["answer", "record", "none"] = field(
        default="answer",
        metadata={
            "help": "A duplicate has the same images and the same answers (answer), or also the same questions "
            "(record: for datasets with several questions per image); none: keep duplicates."
        },
    )
    same_picture: Literal["content", "path"] = field(
        default="content", metadata={"help": "Compare images by the bytes of their files (content), or by path only."}
    )
    allow_outside: bool = field(
        default=False, metadata={"help": "Accept paths that lead out of data_path through `..` or a link."}
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
    """All flags of a check; `sharding` is that of the run to check."""

    model: "ModelArguments"
    data: "DataArguments"
    training: "TrainingArguments"
    check: CheckArguments
    sharding: "Sharding"

    @property
    def seed(self) -> int:
        """The seed of the order and of shares such as name%50, as in training."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed

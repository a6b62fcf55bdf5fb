"""Parse the command line of the pre-flight check: the flags of the training command and the check's own."""

import textwrap
from dataclasses import fields, replace
from typing import Any

from accelerate.utils.deepspeed import HfDeepSpeedConfig

from qwenvl.check.arguments import CheckArguments, CheckFlags
from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, FlagParser, ModelArguments, TrainingArguments
from qwenvl.train.memory import Sharding

# A check reads data and counts: it must also run on a machine without the GPUs, kernels and trackers of the run.
_WITHOUT_DEVICE = {"use_cpu": True, "deepspeed": None, "fsdp": None, "tf32": None, "report_to": "none"}


class _CheckParser(FlagParser):
    """A parser whose help describes the check's own options, and lists only the names of the flags of training."""

    def format_help(self) -> str:
        """Return the help text: the check's own options, then the names of the flags of training."""
        own = FlagParser(
            (CheckArguments,),
            usage="python tools/check_data.py --dataset_use NAMES_OR_FILES --out FOLDER [options] [flags of training]",
            description="Check a dataset before training. Takes the flags of the training command, so that lengths, "
            "batches, steps and memory are those of the run. Exit code: 0 no problems, 1 problems, 2 wrong use.",
        )
        names = {
            f"--{each.name}" for kind in (ModelArguments, DataArguments, TrainingArguments) for each in fields(kind)
        }
        title = "flags of training, described by `python -m qwenvl.train.train_qwen --help`:"
        flags = textwrap.fill(" ".join(sorted(names)), 100, initial_indent="  ", subsequent_indent="  ")
        return f"{own.format_help()}\n{title}\n{flags}\n"


def parse_check_arguments(argv: list[str] | None = None) -> CheckFlags:
    """Read the command line. All flags of training are known; those that do not concern the data have no effect.

    Raises `UserError` for flags that contradict each other.
    """
    kinds = (ModelArguments, DataArguments, TrainingArguments, CheckArguments)
    parser = _CheckParser(kinds)
    given = vars(parser.parse_args(argv))
    model, data, training, check = (_build(kind, given) for kind in kinds)
    stage = 0 if given["deepspeed"] is None else _zero_stage(given["deepspeed"])
    # The memory estimate needs to know whether DeepSpeed keeps the float32 weights; this does not set up DeepSpeed.
    training.deepspeed = given["deepspeed"]
    model = replace(model, attn_implementation="sdpa")
    return CheckFlags(model, data, training, check, Sharding(check.processes, stage))


def _build(kind: type, given: dict[str, Any]) -> Any:
    values = {each.name: given[each.name] for each in fields(kind) if each.init}
    return kind(**values | (_WITHOUT_DEVICE if kind is TrainingArguments else {}))


def _zero_stage(config: str) -> int:
    try:
        return HfDeepSpeedConfig(config).get_value("zero_optimization.stage", 0)
    except ValueError as error:
        raise UserError(f"--deepspeed {config}: {' '.join(str(error).split())}") from None

"""Parse the command line of the pre-flight check: the flags of the training command and the check's own."""

from dataclasses import fields, replace
from typing import Any

from transformers import HfArgumentParser

from qwenvl.check.arguments import CheckArguments, CheckFlags
from qwenvl.errors import UserError
from qwenvl.utils.cli import OneLineErrors

# A check reads data and counts: it must also run on a machine without the GPUs, kernels and trackers of the run.
_WITHOUT_DEVICE = {"use_cpu": True, "deepspeed": None, "fsdp": None, "tf32": None, "report_to": "none"}


class _CheckParser(OneLineErrors, HfArgumentParser):
    """The parser of the check's own options; those of training are left to the parser of training."""

    def __init__(self) -> None:
        super().__init__(
            (CheckArguments,),
            allow_abbrev=False,
            usage="python tools/check_data.py --dataset_use NAMES_OR_FILES --out FOLDER [options] [flags of training]",
            description="Check a dataset before training. Takes the flags of the training command, so that lengths, "
            "batches, steps and memory are those of the run. Exit code: 0 no problems, 1 problems, 2 wrong use.",
            epilog="All flags of training are accepted as well; `python -m qwenvl.train.train_qwen --help` describes "
            "them. Those that do not concern the data have no effect.",
        )


def parse_check_arguments(argv: list[str] | None = None) -> CheckFlags:
    """Read the command line. All flags of training are known; those that do not concern the data have no effect.

    Raises `UserError` for flags that contradict each other.
    """
    _CheckParser().parse_known_args(argv)  # answers --help, before the imports below, which take seconds
    from qwenvl.train.argument import DataArguments, FlagParser, ModelArguments, TrainingArguments
    from qwenvl.train.memory import Sharding

    kinds = (ModelArguments, DataArguments, TrainingArguments, CheckArguments)
    given = vars(FlagParser(kinds).parse_args(argv))
    model, data, check = (_build(kind, given) for kind in (ModelArguments, DataArguments, CheckArguments))
    training = _build(TrainingArguments, given | _WITHOUT_DEVICE)
    stage = 0 if given["deepspeed"] is None else _zero_stage(given["deepspeed"])
    # The memory estimate needs to know whether DeepSpeed keeps the float32 weights; this does not set up DeepSpeed.
    training.deepspeed = given["deepspeed"]
    model = replace(model, attn_implementation="sdpa")
    return CheckFlags(model, data, training, check, Sharding(check.processes, stage))


def _build(kind: type, given: dict[str, Any]) -> Any:
    return kind(**{each.name: given[each.name] for each in fields(kind) if each.init})


def _zero_stage(config: str) -> int:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    try:
        return HfDeepSpeedConfig(config).get_value("zero_optimization.stage", 0)
    except ValueError as error:
        raise UserError(f"--deepspeed {config}: {' '.join(str(error).split())}") from None

"""Write checkpoints whole: in a folder beside the finished ones, renamed when nothing is missing."""

import dataclasses
import enum
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from qwenvl.errors import UserError
from qwenvl.model.build import ADAPTER_CONFIG_NAME
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
from qwenvl.train.distributed import barrier

# Checkpoints are written in this folder of the output folder and moved out of it when they are whole.
INCOMPLETE = ".incomplete"
RUN_ARGUMENTS_NAME = "run_arguments.json"
MODEL_CONFIG_NAMES = (ADAPTER_CONFIG_NAME, "config.json")
_SECRET = re.compile(r"_token$|password|secret", re.IGNORECASE)


class CommitCheckpoints(TrainerCallback):
    """Move each checkpoint that the Trainer has written into the output folder, where it appears whole at once.

    The Trainer's own output folder is `<output_dir>/.incomplete`; a rename is atomic, so what is killed half-way stays
    there and is never taken for a checkpoint.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(self.output_dir / name)
        written = Path(args.output_dir) / name
        barrier()
        if state.is_world_process_zero:
            state.save_to_json(str(written / TRAINER_STATE_NAME))
            replace_folder(written, self.output_dir / name)
            rotate_checkpoints(str(self.output_dir), args.save_total_limit, state.best_model_checkpoint)
        barrier()
        if state.is_local_process_zero and written.is_dir():  # another machine with a disk of its own
            replace_folder(written, self.output_dir / name)
            rotate_checkpoints(str(self.output_dir), args.save_total_limit, state.best_model_checkpoint)

    def record_evaluation(self, args: TrainingArguments, state: TrainerState) -> None:
        """Add what the evaluation of this step has found to the checkpoint that was saved before it, if one was."""
        folder = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not folder.is_dir():
            return
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(folder)
        if state.is_world_process_zero:
            write_state(folder, state)
            rotate_checkpoints(str(self.output_dir), args.save_total_limit, state.best_model_checkpoint)


def write_state(folder: Path, state: TrainerState) -> None:
    """Put the state of a run into a folder that may have one, at no time without a whole one."""
    unfinished = folder / f"{TRAINER_STATE_NAME}.new"
    state.save_to_json(str(unfinished))
    os.replace(unfinished, folder / TRAINER_STATE_NAME)


def replace_folder(source: Path, target: Path) -> None:
    """Move a finished folder to its place, in one step; an older folder there is removed only after that."""
    retired = source.with_name(f"{target.name}.old")
    if target.exists():
        os.replace(target, retired)
    os.replace(source, target)
    shutil.rmtree(retired, ignore_errors=True)


def publish_files(source: Path, target: Path) -> None:
    """Move a finished model's files into the output folder, its configuration last: without it there is no model."""
    files = sorted(source.iterdir(), key=lambda path: path.name in MODEL_CONFIG_NAMES)
    for name in MODEL_CONFIG_NAMES:
        (target / name).unlink(missing_ok=True)
    for path in files:
        if path.is_dir():
            replace_folder(path, target / path.name)
        else:
            os.replace(path, target / path.name)
    source.rmdir()


def run_arguments(*groups: ModelArguments | DataArguments | TrainingArguments) -> dict[str, Any]:
    """Return all arguments of a run as plain JSON values, without what looks like a password."""
    values: dict[str, Any] = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if isinstance(value, enum.Enum):
                value = value.value
            if not isinstance(value, str | int | float | bool | list | dict | None) or _SECRET.search(field.name):
                continue
            values[field.name] = value
    return values


def write_run_arguments(folder: str, arguments: dict[str, Any]) -> None:
    """Write the run's arguments beside a checkpoint's weights."""
    text = json.dumps(arguments, indent=2, default=str)
    (Path(folder) / RUN_ARGUMENTS_NAME).write_text(f"{text}\n", encoding="utf-8")


def prepare_output_dir(output_dir: str, resume: str | None) -> None:
    """Make the output folder and refuse one that cannot be written or that holds another run's checkpoints."""
    folder = Path(output_dir)
    try:
        (folder / INCOMPLETE).mkdir(parents=True, exist_ok=True)
        probe = folder / INCOMPLETE / f"writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir} cannot be written: {error.strerror}; choose another folder"
        ) from None
    holds_a_model = any((folder / name).is_file() for name in MODEL_CONFIG_NAMES)
    if not resume and (holds_a_model or sort_checkpoints(output_dir)):
        raise UserError(
            f"--output_dir {output_dir} already holds another run's checkpoints; continue it with "
            "--resume_from_checkpoint auto, or choose another folder"
        )


def clear_incomplete(output_dir: str) -> None:
    """Remove what an interrupted run left half-written."""
    shutil.rmtree(Path(output_dir) / INCOMPLETE, ignore_errors=True)
    (Path(output_dir) / INCOMPLETE).mkdir(parents=True, exist_ok=True)

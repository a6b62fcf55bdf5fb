"""Write checkpoints completely or not at all: into a folder beside the finished ones, renamed when complete."""

import contextlib
import dataclasses
import enum
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from qwenvl.checkpoint.card import write_model_card
from qwenvl.checkpoint.disk import CheckpointDisk, checkpoint_bytes, existing_folder
from qwenvl.checkpoint.lock import check_lock, lock_output_dir
from qwenvl.checkpoint.manifest import MANIFEST_NAME, flush_folder, replace_file, write_manifest
from qwenvl.errors import UserError
from qwenvl.model.build import ADAPTER_CONFIG_NAME
from qwenvl.utils.distributed import barrier, is_first_process
from qwenvl.utils.json_text import read_json

logger = logging.getLogger(__name__)

# Checkpoints are written into this folder of the output folder, and moved out of it when complete.
INCOMPLETE = ".incomplete"
RUN_ARGUMENTS_NAME = "run_arguments.json"
MODEL_CONFIG_NAMES = (ADAPTER_CONFIG_NAME, "config.json")
# Flags that take a folder or a hub name; folders are recorded as absolute paths.
_MODEL_FLAGS = ("model_name_or_path", "custom_vision_pretrained_path", "vision_merger_path")
# What a folder is called while a newer one takes its place.
_REPLACED = ".replaced"
_SECRET = re.compile(r"_token$|password|secret", re.IGNORECASE)


class CommitCheckpoints(TrainerCallback):
    """Move each checkpoint that the Trainer has written into the output folder, in one atomic step.

    The Trainer's own output folder is `<output_dir>/.incomplete`; a rename is atomic, so an interrupted save stays
    there and is never mistaken for a checkpoint.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Warn if the disk is too small for the checkpoints to come."""
        if state.is_local_process_zero and (count := _checkpoints_to_come(args, state)):
            size = checkpoint_bytes(model, optimizer, deepspeed=bool(args.deepspeed))
            there = len(sort_checkpoints(str(self.output_dir)))
            if args.save_total_limit:
                # One more than the limit, because an old one is removed after the new one is complete.
                count = min(count, max(args.save_total_limit + 1 - there, 1))
            CheckpointDisk(args.output_dir).warn_if_short(size, count)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the written checkpoint into the output folder, and remove those beyond the limit."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(self.output_dir / name)
        written = Path(args.output_dir) / name
        check_lock(str(self.output_dir))
        barrier()
        if state.is_world_process_zero:
            state.save_to_json(str(written / TRAINER_STATE_NAME))
            self._commit(written, args.save_total_limit, state.best_model_checkpoint)
        barrier()
        if state.is_local_process_zero and written.is_dir():  # another machine with its own disk
            self._commit(written, args.save_total_limit, state.best_model_checkpoint)

    def _commit(self, written: Path, limit: int | None, best: str | None) -> None:
        write_manifest(written)
        replace_folder(written, self.output_dir / written.name)
        flush_folder(self.output_dir)
        self._rotate(written.parent, limit, best)

    def record_evaluation(self, args: TrainingArguments, state: TrainerState) -> None:
        """Add the scores of this step to the checkpoint that was saved before its evaluation, if one was."""
        folder = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not folder.is_dir():
            return
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(folder)
        if state.is_world_process_zero:
            write_state(folder, state, Path(args.output_dir))
            self._rotate(Path(args.output_dir), args.save_total_limit, state.best_model_checkpoint)

    def _rotate(self, incomplete: Path, limit: int | None, best: str | None) -> None:
        for folder in superfluous_checkpoints(self.output_dir, limit, best):
            remove_folder(folder, incomplete)


def write_state(folder: Path, state: TrainerState, incomplete: Path) -> None:
    """Replace the run state in a finished folder; `incomplete` is a folder beside it for the unfinished file."""
    unfinished = incomplete / TRAINER_STATE_NAME
    state.save_to_json(str(unfinished))
    replace_file(folder, TRAINER_STATE_NAME, unfinished)
    arguments = read_json(folder / RUN_ARGUMENTS_NAME)
    write_model_card(folder, arguments, state.log_history)


def replace_folder(source: Path, target: Path) -> None:
    """Move a finished folder to its place; an older folder there is removed only after that.

    A process that is killed between the two renames leaves the older one beside `source`, for `restore_replaced`.
    """
    retired = source.with_name(f"{target.name}{_REPLACED}")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        os.replace(target, retired)
    os.replace(source, target)
    shutil.rmtree(retired, ignore_errors=True)


def restore_replaced(output_dir: str | Path) -> None:
    """Put back the checkpoints that a killed run had renamed to replace them, and not replaced yet."""
    for retired in sorted((Path(output_dir) / INCOMPLETE).glob(f"*{_REPLACED}")):
        target = Path(output_dir) / retired.name.removesuffix(_REPLACED)
        if not target.exists():
            os.replace(retired, target)
            logger.info("%s: restored, an earlier run was killed while replacing it", target)


def remove_folder(folder: Path, incomplete: Path) -> None:
    """Remove a checkpoint: rename it first, atomically, then delete its files, which may be interrupted."""
    retired = incomplete / f"{folder.name}.old"
    shutil.rmtree(retired, ignore_errors=True)
    os.replace(folder, retired)
    shutil.rmtree(retired, ignore_errors=True)


def superfluous_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> list[Path]:
    """Return the oldest checkpoints beyond `--save_total_limit`, never the newest or the best one."""
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))]
    if not limit or limit < 0 or not folders:
        return []
    kept = {folders[-1], *([] if best is None else [Path(best)])} & set(folders)
    others = [folder for folder in folders if folder not in kept]
    return others[: max(len(folders) - max(limit, len(kept)), 0)]


def publish_files(source: Path, target: Path) -> None:
    """Move a finished model's files into the output folder, its configuration last: without it there is no model."""
    check_lock(str(target))
    with CheckpointDisk(source.parent).explain_errors():
        write_manifest(source)
        files = sorted(source.iterdir(), key=lambda path: (path.name in MODEL_CONFIG_NAMES, path.name == MANIFEST_NAME))
        for name in (*MODEL_CONFIG_NAMES, MANIFEST_NAME):
            (target / name).unlink(missing_ok=True)
        for path in files:
            if path.is_dir():
                replace_folder(path, target / path.name)
            else:
                os.replace(path, target / path.name)
        source.rmdir()
        flush_folder(target)


def _checkpoints_to_come(args: TrainingArguments, state: TrainerState) -> int:
    if args.save_strategy == "steps":
        return -(-max(state.max_steps - state.global_step, 0) // max(state.save_steps, 1))
    if args.save_strategy == "epoch":
        return math.ceil(max(state.num_train_epochs - (state.epoch or 0), 0))
    return int(args.save_strategy == "best")


def run_arguments(*groups: Any) -> dict[str, Any]:
    """Return all arguments of a run as plain JSON values: without secrets, and with absolute folders.

    The groups are dataclasses with a field for each flag.
    """
    values: dict[str, Any] = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if isinstance(value, enum.Enum):
                value = value.value
            if not isinstance(value, str | int | float | bool | list | dict | None) or _SECRET.search(field.name):
                continue
            if field.name in _MODEL_FLAGS and value is not None and Path(value).exists():
                value = str(Path(value).absolute())
            values[field.name] = value
    return values


def write_run_arguments(folder: str, arguments: dict[str, Any]) -> None:
    """Write the run's arguments beside a checkpoint's weights."""
    text = json.dumps(arguments, indent=2, default=str)
    (Path(folder) / RUN_ARGUMENTS_NAME).write_text(f"{text}\n", encoding="utf-8")


@contextlib.contextmanager
def cache_as_for_use(config: PreTrainedConfig) -> Iterator[None]:
    """Turn the key-value cache of a configuration on while it is written: only training turns it off."""
    parts = [part for part in (config, config.text_config) if hasattr(part, "use_cache")]
    before = [part.use_cache for part in parts]
    for part in parts:
        part.use_cache = True
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.use_cache = value


def prepare_output_dir(output_dir: str, resume: str | None, *, dry_run: bool = False) -> None:
    """Lock the output folder for this run, and refuse one that cannot be written or holds another run's checkpoints.

    The first process creates the folder, locks it until `release_output_dirs`, and puts back what a killed run has
    moved; a dry run does none of that.
    """
    try:
        if is_first_process() and not dry_run:
            lock_output_dir(output_dir, inner_folders=(INCOMPLETE,))
            restore_replaced(output_dir)
        with tempfile.TemporaryFile(dir=existing_folder(Path(output_dir))) as probe:
            probe.write(b"writable")
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir} cannot be written: {error.strerror}; choose another folder"
        ) from None
    holds_a_model = any((Path(output_dir) / name).is_file() for name in MODEL_CONFIG_NAMES)
    if not resume and (holds_a_model or sort_checkpoints(output_dir)):
        raise UserError(
            f"--output_dir {output_dir} already holds another run's checkpoints; continue it with "
            "--resume_from_checkpoint auto, or choose another folder"
        )


def clear_incomplete(output_dir: str) -> None:
    """Remove the unfinished files of an interrupted run."""
    shutil.rmtree(Path(output_dir) / INCOMPLETE, ignore_errors=True)
    (Path(output_dir) / INCOMPLETE).mkdir(parents=True, exist_ok=True)

"""Choose the checkpoint to resume from: the named one, or the newest complete one."""

import logging
from pathlib import Path

from transformers.trainer_utils import sort_checkpoints

from qwenvl.checkpoint.manifest import MANIFEST_NAME, find_fault
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.utils.distributed import broadcast_from_first, is_first_process

logger = logging.getLogger(__name__)


def newest_whole_checkpoint(output_dir: str) -> str | None:
    """Return the newest complete checkpoint of an output folder, None if it holds no checkpoint at all.

    Logs newer ones that are broken, each with its file. Raises `UserError` if there are checkpoints and all are
    broken. The first process looks, and the others receive its result.
    """
    return broadcast_from_first(_newest_whole(output_dir) if is_first_process() else None)


def check_whole(folder: Path) -> None:
    """Raise `UserError` that names the broken file of a checkpoint to resume from; the first process looks."""
    fault = find_fault(folder, for_resume=True) if is_first_process() else None
    if fault is not None:
        raise UserError(
            f"--resume_from_checkpoint {folder}: {fault}; name another checkpoint, or auto for the newest complete one"
        )


def check_start_folders(model_args: ModelArguments) -> None:
    """Raise `UserError` if a folder that a run starts from, one of an earlier run, has a broken file."""
    for flag in ("model_name_or_path", "vision_merger_path"):
        folder = getattr(model_args, flag)
        # Other models have no manifest; their loaders report what is missing.
        if folder is not None and (Path(folder) / MANIFEST_NAME).is_file() and is_first_process():
            fault = find_fault(Path(folder), for_resume=False)
            if fault is not None:
                raise UserError(f"--{flag} {folder}: {fault}; copy it again, or name one of its checkpoints")


def _newest_whole(output_dir: str) -> str | None:
    faults: dict[str, str] = {}
    for folder in reversed(sort_checkpoints(output_dir)):
        fault = find_fault(Path(folder), for_resume=True)
        if fault is None:
            for broken, why in faults.items():
                logger.warning("%s is broken: %s", broken, why)
            if faults:
                logger.warning(
                    "--resume_from_checkpoint auto: continuing from the newest complete checkpoint, %s", folder
                )
            return folder
        faults[folder] = fault
    if faults:
        listed = "; ".join(f"{Path(folder).name}: {fault}" for folder, fault in faults.items())
        raise UserError(
            f"--resume_from_checkpoint auto: no checkpoint in {output_dir} is complete ({listed}); restore the files, "
            "or start a new run in another --output_dir"
        )
    return None

"""Go back to an earlier checkpoint: later ones are set aside, never deleted and never continued."""

import logging
import os
import re
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

logger = logging.getLogger(__name__)

# The folder inside the output folder for the checkpoints of abandoned branches.
SUPERSEDED = "superseded"


def set_later_checkpoints_aside(output_dir: str, resume_from: str, step: int) -> None:
    """Move the checkpoints after `step`, where a run continues, into `superseded/`, and log it in one line.

    If they stayed, they would be the newest: a save limit would delete the new ones before them, and `auto` would
    continue the old branch. Continuing from a checkpoint of another folder sets all checkpoints of this one aside.
    """
    first = step + 1 if Path(resume_from).resolve().parent == Path(output_dir).resolve() else 0
    later = [Path(each) for each in sort_checkpoints(output_dir) if _step_of(Path(each)) >= first]
    if not later:
        return
    aside = Path(output_dir) / SUPERSEDED
    aside.mkdir(exist_ok=True)
    for checkpoint in later:
        os.replace(checkpoint, _free_name(aside / checkpoint.name))
    names = ", ".join(checkpoint.name for checkpoint in later)
    logger.info("continuing from %s: %s moved to %s", resume_from, names, aside)


def _step_of(folder: Path) -> int:
    found = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(found[1]) if found else -1


def _free_name(path: Path) -> Path:
    """Return the path, or the first of `path-2`, `path-3` ... that is not taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free

"""Go back to an earlier checkpoint: what a run wrote after it is set aside, never deleted and never continued."""

import logging
import os
import re
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

logger = logging.getLogger(__name__)

# The folder of the output folder that keeps the checkpoints of branches that were given up.
SUPERSEDED = "superseded"


def set_later_checkpoints_aside(output_dir: str, resume_from: str, step: int) -> None:
    """Move the checkpoints after `step`, at which a run goes on, into `superseded/`, and tell it in one line.

    Left where they are, they would be the newest: a save limit would delete the new ones before them, and `auto` would
    continue the old branch. To go on from a checkpoint of another folder sets all aside that are here.
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
    logger.info("going on from %s: %s moved to %s", resume_from, names, aside)


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

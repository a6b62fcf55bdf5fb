"""Find the checkpoint that a run continues from, and check that it is the same run."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from qwenvl.checkpoint.manifest import MANIFEST_NAME
from qwenvl.checkpoint.save import INCOMPLETE, MODEL_CONFIG_NAMES, RUN_ARGUMENTS_NAME
from qwenvl.checkpoint.select import check_whole, newest_whole_checkpoint
from qwenvl.checkpoint.trust import refuse_foreign_pickles
from qwenvl.errors import UserError
from qwenvl.train.argument import CUSTOM_VISION_FLAGS

logger = logging.getLogger(__name__)

# A run can only be continued with the same model, the same trainable parts and the same order of samples.
_FIXED_FOR_RESUME = (
    "model_name_or_path",
    "tune_mm_llm",
    "tune_mm_mlp",
    "tune_mm_vision",
    "lora_enable",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "custom_vision_encoder",
    "vision_merger_path",
    *CUSTOM_VISION_FLAGS,
    # Which samples have been seen follows from these.
    "dataset_use",
    "data_flatten",
    "data_packing",
    "model_max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "world_size",
)


def find_resume_checkpoint(output_dir: str, resume: str | None, arguments: dict[str, Any]) -> str | None:
    """Return the checkpoint to continue from: the newest for "auto" (none at all starts afresh), or the one named.

    Raises `UserError` for a folder that is no checkpoint, one that was interrupted, and one of another model or with
    other trainable parts.
    """
    if not resume or resume.lower() == "false":
        return None
    is_named = resume.lower() not in ("auto", "true")
    if not is_named:
        found = newest_whole_checkpoint(output_dir)
        if found is None:
            if any((Path(output_dir) / name).is_file() for name in MODEL_CONFIG_NAMES):
                raise UserError(
                    f"--resume_from_checkpoint auto: {output_dir} holds a finished model and no checkpoint to go on "
                    "from; choose another --output_dir"
                )
            logger.info("--resume_from_checkpoint auto: no checkpoint in %s, starting afresh", output_dir)
            return None
        resume = found
    folder = Path(resume)
    if INCOMPLETE in folder.resolve().parts:
        raise UserError(f"--resume_from_checkpoint {resume} was interrupted while it was written; name a whole one")
    if not _is_resumable(folder) and not (folder / MANIFEST_NAME).is_file():
        raise UserError(
            f"--resume_from_checkpoint {resume} is no checkpoint of a run (expected {TRAINER_STATE_NAME} and "
            f"{SCHEDULER_NAME}); name a folder {PREFIX_CHECKPOINT_DIR}-STEP, or auto"
        )
    if is_named:
        check_whole(folder)
    refuse_foreign_pickles(folder, bool(arguments.get("trust_remote_code")))
    _check_same_run(folder, arguments)
    return str(folder)


def check_encoder(folder: str, model: PreTrainedModel) -> None:
    """Raise `UserError` if a run is to be continued with other weights of its frozen encoder than it had."""
    config = Path(folder) / "config.json"
    noted = json.loads(config.read_text(encoding="utf-8"))["vision_config"] if config.is_file() else {}
    before, now = noted.get("encoder_sha256"), getattr(model.config.vision_config, "encoder_sha256", None)
    if before != now:
        raise UserError(
            f"--resume_from_checkpoint {folder}: the encoder's weights at {model.config.vision_config.encoder_weights} "
            f"are not those of that run (SHA-256 {now}, expected {before}); put the original ones there"
        )


def _is_resumable(folder: Path) -> bool:
    """Whether a folder holds more than a model: how far the run was, and its schedule and optimizer."""
    return all((folder / name).is_file() for name in (TRAINER_STATE_NAME, SCHEDULER_NAME))


def _check_same_run(folder: Path, arguments: dict[str, Any]) -> None:
    recorded = folder / RUN_ARGUMENTS_NAME
    if not recorded.is_file():
        return
    before = json.loads(recorded.read_text(encoding="utf-8"))
    for name in _FIXED_FOR_RESUME:
        if name in before and before[name] != arguments[name]:
            raise UserError(
                f"--resume_from_checkpoint {folder}: that run had --{name} {before[name]}, this one has "
                f"{arguments[name]}; give the same, or start a new run in another folder"
            )

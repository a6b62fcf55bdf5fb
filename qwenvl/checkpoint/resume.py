"""Find the checkpoint that a run continues from, and check that it is complete and of the same run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from qwenvl.checkpoint.manifest import MANIFEST_NAME
from qwenvl.checkpoint.rollback import SUPERSEDED
from qwenvl.checkpoint.same_run import check_same_run, check_same_step
from qwenvl.checkpoint.save import INCOMPLETE, MODEL_CONFIG_NAMES, RUN_ARGUMENTS_NAME
from qwenvl.checkpoint.select import check_whole, newest_whole_checkpoint
from qwenvl.errors import UserError
from qwenvl.model.build import ADAPTER_CONFIG_NAME
from qwenvl.model.trust import refuse_foreign_pickles
from qwenvl.utils.json_text import read_json

logger = logging.getLogger(__name__)


def find_resume_checkpoint(output_dir: str, resume: str | None, arguments: dict[str, Any]) -> str | None:
    """Return the checkpoint to continue from: the newest for "auto" (None if there is none), or the one named.

    `arguments` are those of the run, with its "world_size" and its "zero_stage" (None without DeepSpeed). Raises
    `UserError` for a folder that is not a checkpoint, is incomplete, or belongs to another run.
    """
    if not resume or resume.lower() == "false":
        return None
    is_named = resume.lower() not in ("auto", "true")
    if not is_named:
        newest = newest_whole_checkpoint(output_dir)
        if newest is None:
            _check_nothing_is_left(Path(output_dir))
            logger.info("--resume_from_checkpoint auto: no checkpoint in %s, starting a new run", output_dir)
            return None
        resume = newest
    folder = Path(resume)
    if INCOMPLETE in folder.resolve().parts:
        raise UserError(f"--resume_from_checkpoint {resume} was interrupted while it was written; name a complete one")
    if not (folder / TRAINER_STATE_NAME).is_file() and not (folder / MANIFEST_NAME).is_file():
        there = [Path(path).name for path in sort_checkpoints(output_dir)]
        held = f"{output_dir} holds {', '.join(there)}" if there else f"a folder {PREFIX_CHECKPOINT_DIR}-STEP is one"
        raise UserError(
            f"--resume_from_checkpoint {resume} is not a checkpoint of a run (expected {TRAINER_STATE_NAME}); {held}: "
            "name one, or auto"
        )
    if is_named:
        check_whole(folder)
    refuse_foreign_pickles(folder, bool(arguments.get("trust_remote_code")))
    before = _recorded_arguments(folder)
    arguments = as_recorded(arguments)
    _check_deepspeed(folder, before, arguments)
    missing = missing_files(folder, before, arguments)
    if missing:
        raise UserError(
            f"--resume_from_checkpoint {folder} lacks {', '.join(missing)}, without which the run cannot be resumed "
            f"exactly; restore it, or name another {PREFIX_CHECKPOINT_DIR}-STEP"
        )
    check_same_run(folder, before, arguments)
    return str(folder)


def check_encoder(folder: str, model: PreTrainedModel) -> None:
    """Raise `UserError` if the weights of a frozen encoder are not those of the continued run."""
    config = Path(folder) / "config.json"
    noted = read_json(config)["vision_config"] if config.is_file() else {}
    before, now = noted.get("encoder_sha256"), getattr(model.config.vision_config, "encoder_sha256", None)
    if before != now:
        raise UserError(
            f"--resume_from_checkpoint {folder}: the encoder's weights at {model.config.vision_config.encoder_weights} "
            f"are not those of that run (SHA-256 {now}, expected {before}); restore the original weights there"
        )


def check_same_data(folder: str, arguments: dict[str, Any]) -> None:
    """Raise `UserError` if the samples, or those of one step, are not those of the continued run.

    Logs if those of evaluation are not. `arguments` holds the results of `describe_data` for both, as "data" and
    "eval_data".
    """
    before = _recorded_arguments(Path(folder))
    arguments = as_recorded(arguments)
    then, now = before.get("data"), arguments["data"]
    if then is not None and then != now:
        raise UserError(
            f"--resume_from_checkpoint {folder}: the samples of --dataset_use {arguments['dataset_use']} are not those "
            f"of that run ({then['records']} records of {then['tokens']} tokens then, {now['records']} of "
            f"{now['tokens']} now); restore the data, or start a new run in another folder"
        )
    if arguments.get("samples_per_step") is not None:
        check_same_step(Path(folder), before, arguments)
    then, now = before.get("eval_data"), arguments["eval_data"]
    if then is not None and now is not None and then != now:
        logger.info(
            "the samples of --eval_dataset_use are not those of the run so far (%d then, %d now): do not compare the "
            "scores before and after",
            then["records"],
            now["records"],
        )


def missing_files(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the files that an exact resume needs and that the checkpoint lacks.

    `before` are the arguments of the run that wrote it, `now` those of the run that continues it.
    """
    processes = now["world_size"]
    needed = [SCHEDULER_NAME, _weights_name(folder)]
    if (
        before.get("world_size", processes) == processes
    ):  # else `check_same_run` has refused whatever draws random numbers
        several = [f"rng_state_{index}.pth" for index in range(processes)]
        needed += several if processes > 1 else ["rng_state.pth"]
    if now["zero_stage"] is not None:
        needed += ["latest", *_deepspeed_files(folder, processes, now["zero_stage"])]
    elif not now.get("fsdp"):
        needed += [OPTIMIZER_NAME, *([SCALER_NAME] if now["fp16"] else [])]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = read_json(folder / SAFE_WEIGHTS_INDEX_NAME)
        needed += sorted(set(index["weight_map"].values()))
    return [name.replace("*", "") for name in needed if not any(folder.glob(name))]


def _weights_name(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return ADAPTER_SAFE_WEIGHTS_NAME
    return SAFE_WEIGHTS_INDEX_NAME if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file() else SAFE_WEIGHTS_NAME


def _deepspeed_files(folder: Path, processes: int, stage: int) -> list[str]:
    """Return glob patterns of DeepSpeed's files: each process's optimizer and, in stage 3, model."""
    of_process = [f"zero_pp_rank_{index}_mp_rank_00" for index in range(processes)]
    models = [f"{name}_model_states.pt" for name in of_process] if stage == 3 else ["mp_rank_00_model_states.pt"]
    optimizers = [f"*{name}_optim_states.pt" for name in of_process] if stage > 0 else []
    latest = folder / "latest"
    inside = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    return [f"{inside or 'global_step*'}/{name}" for name in models + optimizers]


def _check_nothing_is_left(output_dir: Path) -> None:
    """Raise `UserError` if a folder without a checkpoint holds something that a new run would overwrite."""
    if any((output_dir / name).is_file() for name in MODEL_CONFIG_NAMES):
        raise UserError(
            f"--resume_from_checkpoint auto: {output_dir} holds a finished model and no checkpoint to resume "
            "from; choose another --output_dir"
        )
    superseded = sort_checkpoints(str(output_dir / SUPERSEDED))
    if superseded:
        raise UserError(
            f"--resume_from_checkpoint auto: {output_dir} holds only superseded checkpoints; name the one to "
            f"resume from, such as {superseded[-1]}"
        )


def as_recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as they would be read back from run_arguments.json."""
    return json.loads(json.dumps(arguments, default=str))


def _recorded_arguments(folder: Path) -> dict[str, Any]:
    recorded = folder / RUN_ARGUMENTS_NAME
    if not recorded.is_file():
        raise UserError(
            f"--resume_from_checkpoint {folder} lacks {RUN_ARGUMENTS_NAME}, which describes its run; restore it, "
            f"or name another {PREFIX_CHECKPOINT_DIR}-STEP"
        )
    return read_json(recorded)


def _check_deepspeed(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to add, remove or change the stage of DeepSpeed: each partitions the optimizer in its own way."""
    stage_before, stage_now = before.get("zero_stage"), now["zero_stage"]
    if "zero_stage" not in before and before.get("deepspeed"):  # written by a version that did not record the stage
        stage_before = 3 if any(folder.glob("global_step*/zero_pp_rank_*_model_states.pt")) else 2
    if stage_before == stage_now:
        return
    then, this = (
        "no DeepSpeed" if stage is None else f"DeepSpeed ZeRO stage {stage}" for stage in (stage_before, stage_now)
    )
    remedy = "leave --deepspeed out" if stage_before is None else f"give --deepspeed scripts/zero{stage_before}.json"
    raise UserError(
        f"--resume_from_checkpoint {folder} is of a run with {then}, and this one has {this}: the optimizer cannot be "
        f"converted; {remedy}, or start a new run in another folder"
    )

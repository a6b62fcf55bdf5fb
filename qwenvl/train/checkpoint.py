"""Owns checkpoints: how a run writes them whole, finds them again, and how a folder becomes a model."""

import dataclasses
import enum
import json
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from qwenvl.errors import UserError
from qwenvl.model.attention import resolve_attention
from qwenvl.model.build import ADAPTER_CONFIG_NAME, load_pretrained, load_processor
from qwenvl.train.argument import CUSTOM_VISION_FLAGS, DataArguments, ModelArguments, TrainingArguments
from qwenvl.train.distributed import barrier
from qwenvl.vision import CUSTOM_MODEL_TYPES, swap_vision_tower

logger = logging.getLogger(__name__)

# Checkpoints are written in this folder of the output folder and moved out of it when they are whole.
INCOMPLETE = ".incomplete"
RUN_ARGUMENTS_NAME = "run_arguments.json"
_MODEL_CONFIG_NAMES = (ADAPTER_CONFIG_NAME, "config.json")
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


def replace_folder(source: Path, target: Path) -> None:
    """Move a finished folder to its place, in one step; an older folder there is removed only after that."""
    retired = source.with_name(f"{target.name}.old")
    if target.exists():
        os.replace(target, retired)
    os.replace(source, target)
    shutil.rmtree(retired, ignore_errors=True)


def publish_files(source: Path, target: Path) -> None:
    """Move a finished model's files into the output folder, its configuration last: without it there is no model."""
    files = sorted(source.iterdir(), key=lambda path: path.name in _MODEL_CONFIG_NAMES)
    for name in _MODEL_CONFIG_NAMES:
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
    holds_a_model = any((folder / name).is_file() for name in _MODEL_CONFIG_NAMES)
    if not resume and (holds_a_model or sort_checkpoints(output_dir)):
        raise UserError(
            f"--output_dir {output_dir} already holds another run's checkpoints; continue it with "
            "--resume_from_checkpoint auto, or choose another folder"
        )


def clear_incomplete(output_dir: str) -> None:
    """Remove what an interrupted run left half-written."""
    shutil.rmtree(Path(output_dir) / INCOMPLETE, ignore_errors=True)
    (Path(output_dir) / INCOMPLETE).mkdir(parents=True, exist_ok=True)


def find_resume_checkpoint(output_dir: str, resume: str | None, arguments: dict[str, Any]) -> str | None:
    """Return the checkpoint to continue from: the newest for "auto" (none at all starts afresh), or the one named.

    Raises `UserError` for a folder that is no checkpoint, one that was interrupted, and one of another model or with
    other trainable parts.
    """
    if not resume or resume.lower() == "false":
        return None
    if resume.lower() in ("auto", "true"):
        found = [folder for folder in sort_checkpoints(output_dir) if _is_resumable(Path(folder))]
        if not found:
            if any((Path(output_dir) / name).is_file() for name in _MODEL_CONFIG_NAMES):
                raise UserError(
                    f"--resume_from_checkpoint auto: {output_dir} holds a finished model and no checkpoint to go on "
                    "from; choose another --output_dir"
                )
            logger.info("--resume_from_checkpoint auto: no checkpoint in %s, starting afresh", output_dir)
            return None
        resume = found[-1]
    folder = Path(resume)
    if INCOMPLETE in folder.resolve().parts:
        raise UserError(f"--resume_from_checkpoint {resume} was interrupted while it was written; name a whole one")
    if not _is_resumable(folder):
        raise UserError(
            f"--resume_from_checkpoint {resume} is no checkpoint of a run (expected {TRAINER_STATE_NAME} and "
            f"{SCHEDULER_NAME}); name a folder {PREFIX_CHECKPOINT_DIR}-STEP, or auto"
        )
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


def load_checkpoint(
    folder: str | Path,
    *,
    base_model: str | None = None,
    encoder_path: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str = "sdpa",
    device: str | torch.device | None = None,
) -> tuple[PreTrainedModel | PeftModel, ProcessorMixin]:
    """Load a trained model and its processor from a checkpoint or output folder, in evaluation mode.

    Works for adapters (the base model and a frozen custom encoder's weights are found where training found them, or at
    `base_model` and `encoder_path`) and for whole models. Raises `UserError` if the folder holds neither.
    """
    folder = Path(folder)
    attention = resolve_attention(attn_implementation)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        adapter = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
        base_model = base_model or adapter["base_model_name_or_path"]
        try:
            model = load_pretrained(base_model, dtype=dtype, attention=attention)
        except UserError as error:
            raise UserError(f"the base model of {folder}: {error}; load_checkpoint takes it as base_model") from None
        model = _with_tower_of(model, folder, adapter["modules_to_save"] or [], encoder_path)
        with warnings.catch_warnings():
            # PEFT asks Transformers by a name that it will drop.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            model = PeftModel.from_pretrained(model, str(folder))
    elif (folder / "config.json").is_file():
        model = load_pretrained(str(folder), dtype=dtype, attention=attention)
    else:
        inside = sort_checkpoints(str(folder)) if folder.is_dir() else []
        remedy = f"it holds {', '.join(Path(path).name for path in inside)}: name one" if inside else "check the path"
        raise UserError(f"{folder} holds no trained model ({' or '.join(_MODEL_CONFIG_NAMES)}); {remedy}")
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), load_processor(str(folder))


def _with_tower_of(
    model: PreTrainedModel, folder: Path, saved_modules: list[str], encoder_path: str | None
) -> PreTrainedModel:
    """Give a base model the custom tower that an adapter was trained with, if it was and the base has it not yet."""
    if not (folder / "config.json").is_file() or model.config.model_type in CUSTOM_MODEL_TYPES:
        return model
    vision_config = AutoConfig.from_pretrained(folder).vision_config
    if "visual.encoder" in saved_modules:
        # The adapter brings the encoder's weights: those that it was trained from are not needed.
        vision_config.encoder_weights = None
    elif encoder_path is not None:
        vision_config.encoder_weights = encoder_path
    elif vision_config.encoder_weights is None:
        raise UserError(
            f"{folder} neither holds the weights of its encoder {vision_config.encoder} nor names a file of them; give "
            "them to load_checkpoint as encoder_path"
        )
    try:
        return swap_vision_tower(model, vision_config)
    except UserError as error:
        raise UserError(f"the encoder of {folder}: {error}; load_checkpoint takes its place as encoder_path") from None

"""Declare the training runs that the suite measures, and the speed and memory that each shall reach."""

from dataclasses import dataclass, field

from qwenvl.errors import UserError


@dataclass(frozen=True)
class Aim:
    """What a run shall reach; None where nothing is asked for.

    `of_row` names the row that `share_of_row` (of its samples per second on each GPU) and `loss_within` (relative
    difference of the loss at the same steps) compare with.
    """

    samples_per_second: float | None = None
    peak_gib: float | None = None
    seconds_to_first_step: float | None = None
    of_row: str | None = None
    share_of_row: float | None = None
    loss_within: float | None = None


@dataclass(frozen=True)
class Row:
    """One training run of the suite.

    `flags` are added to the recipe that all rows share, without their dashes; {encoder} and {cache} in a value stand
    for folders that the suite makes. A `script` is started in the place of the training program, with what it sets by
    itself. `card_gib` is the memory that a GPU must have for the row to be tried. `only_start` measures the time to
    the first step and nothing else, with a compile cache of its own, which is emptied before if it `starts_cold`.
    """

    name: str
    recipe: str
    aim: Aim
    shape: str = "4b"
    flags: dict[str, str] = field(default_factory=dict)
    script: str | None = None
    gpus: int = 1
    card_gib: float = 16
    warmup_seconds: float = 0
    num_records: int | None = None
    only_start: bool = False
    starts_cold: bool = False


# The conditions of the peers' rows in docs/benchmarks.md. Packs of 16k hold about 30 samples.
RECIPE = {
    "tune_mm_llm": "True",
    "tune_mm_mlp": "True",
    "lora_enable": "True",
    "lora_r": "64",
    "lora_alpha": "128",
    "lora_target_modules": "q_proj,k_proj,v_proj,o_proj",
    "learning_rate": "2e-5",
    "mm_projector_lr": "1e-5",
    "bf16": "True",
    "max_pixels": "451584",
    "data_packing": "True",
    "model_max_length": "16384",
    "per_device_train_batch_size": "1",
    "torch_compile": "True",
    "dataloader_num_workers": "12",
    "logging_steps": "10",
    "report_to": "none",
    "save_strategy": "no",
}
_RAD_DINO = {
    "custom_vision_encoder": "rad_dino",
    "custom_vision_pretrained_path": "{encoder}",
    "mm_projector_lr": "2e-5",
}
_SMALL = {"model_max_length": "8192", "samples_per_step": "30"}

ROWS = (
    Row(
        "preset",
        "4B, `bash scripts/sft_mimic_4b.sh`, second minute on",
        Aim(samples_per_second=45),
        script="scripts/sft_mimic_4b.sh",
        warmup_seconds=60,
    ),
    Row("bf16", "4B, bf16", Aim(samples_per_second=52), card_gib=40),
    Row(
        "bf16-24gib",
        "4B, bf16, within 24 GiB",
        Aim(samples_per_second=42, peak_gib=24),
        flags=_SMALL | {"gradient_checkpointing": "True"},
        card_gib=24,
    ),
    Row(
        "smallest",
        "4B, smallest, merger trained",
        Aim(samples_per_second=30, peak_gib=10.4),
        flags=_SMALL | {"frozen_weights": "fp8", "gradient_checkpointing": "True"},
    ),
    Row(
        "fp8",
        "4B, frozen weights in FP8",
        Aim(samples_per_second=70, of_row="bf16", loss_within=0.01),
        flags={"frozen_weights": "fp8"},
        card_gib=40,
    ),
    Row(
        "8b-bf16",
        "8B, bf16, within 40 GiB",
        Aim(samples_per_second=24, peak_gib=40),
        shape="8b",
        flags=_SMALL | {"gradient_checkpointing": "True"},
        card_gib=40,
    ),
    Row(
        "8b-fp8",
        "8B, frozen weights in FP8",
        Aim(samples_per_second=38),
        shape="8b",
        flags={"frozen_weights": "fp8"},
        card_gib=40,
    ),
    Row("rad-dino", "4B, RAD-DINO frozen", Aim(samples_per_second=22), flags=_RAD_DINO, card_gib=40),
    Row(
        "rad-dino-cached",
        "4B, RAD-DINO frozen, features cached",
        Aim(samples_per_second=23),
        flags=_RAD_DINO | {"cache_vision_features": "{cache}"},
        card_gib=40,
        num_records=4000,
    ),
    Row(
        "ddp",
        "4B, bf16, two GPUs, DistributedDataParallel",
        Aim(of_row="bf16", share_of_row=0.97),
        gpus=2,
        card_gib=40,
    ),
    Row(
        "zero2",
        "4B, bf16, two GPUs, ZeRO-2",
        Aim(of_row="bf16", share_of_row=0.97),
        flags={"deepspeed": "scripts/zero2.json"},
        gpus=2,
        card_gib=40,
    ),
    Row(
        "start-cold",
        "4B, bf16, start, nothing compiled before",
        Aim(seconds_to_first_step=70),
        card_gib=40,
        only_start=True,
        starts_cold=True,
    ),
    Row(
        "start-warm",
        "4B, bf16, start, compiled before",
        Aim(seconds_to_first_step=40),
        card_gib=40,
        only_start=True,
    ),
)


def select_rows(names: str | None, shapes: list[str]) -> list[Row]:
    """Return the rows of these names (with commas between them; None: all) whose shape is among `shapes`.

    Raises `UserError` for a name that there is not, and if no row is left.
    """
    known = {row.name: row for row in ROWS}
    chosen = list(known) if names is None else names.split(",")
    for name in chosen:
        if name not in known:
            raise UserError(f"--rows {name} is unknown; choose from {', '.join(known)}")
    rows = [row for row in ROWS if row.name in chosen and row.shape in shapes]
    if not rows:
        raise UserError(f"no row of --rows {names} has a shape of --shapes {','.join(shapes)}; leave one of them out")
    return rows

import dataclasses
from pathlib import Path

import pytest
from transformers.integrations import get_available_reporting_integrations

from qwenvl.errors import UserError
from qwenvl.train.argument import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    check_arguments,
    parse_arguments,
)
from tests.train.conftest import command_line

RECIPE = {"dataset_use": "mine", "tune_mm_llm": True, "tune_mm_mlp": True, "lora_enable": True, "use_cpu": True}
# As `scripts/sft.sh` of the official repository gives them, but for the tracker, which is not installed here.
OFFICIAL_COMMAND = (
    "--model_name_or_path Qwen/Qwen3-VL-4B-Instruct --dataset_use mine --data_flatten True --tune_mm_vision False "
    "--tune_mm_mlp True --tune_mm_llm True --bf16 --output_dir output --num_train_epochs 0.5 "
    "--per_device_train_batch_size 4 --per_device_eval_batch_size 8 --gradient_accumulation_steps 4 "
    "--max_pixels 50176 --min_pixels 784 --eval_strategy no --save_strategy steps --save_steps 1000 "
    "--save_total_limit 1 --learning_rate 1e-5 --weight_decay 0 --warmup_ratio 0.03 --max_grad_norm 1 "
    "--lr_scheduler_type cosine --logging_steps 1 --model_max_length 8192 --gradient_checkpointing True "
    "--dataloader_num_workers 4 --run_name qwen-finetune --report_to tensorboard --use_cpu True"
)


def _check(tmp_path: Path, **flags: object) -> TrainingArguments:
    arguments = parse_arguments(command_line(**{"output_dir": tmp_path} | RECIPE | flags))
    check_arguments(*arguments)
    return arguments[2]


def test_the_recipe_of_the_mission_is_accepted(tmp_path: Path) -> None:
    _check(tmp_path, mm_projector_lr=1e-5, learning_rate=2e-5)


def test_the_official_command_is_accepted() -> None:
    check_arguments(*parse_arguments(OFFICIAL_COMMAND.split()))


def test_each_flag_may_be_given_its_default(tmp_path: Path) -> None:
    defaults = {}
    for group in (ModelArguments, DataArguments, TrainingArguments):
        for each in dataclasses.fields(group):
            if each.default not in (None, "", dataclasses.MISSING):
                defaults[each.name] = each.default

    assert len(defaults) > 80
    _check(tmp_path, **defaults | RECIPE | {"output_dir": tmp_path, "ddp_find_unused_parameters": False})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tune_mm_llm": False}, "--lora_enable True needs --tune_mm_llm True"),
        ({"tune_mm_llm": False, "tune_mm_mlp": False, "lora_enable": False}, "nothing would be trained"),
        ({"tune_mm_mlp": False, "mm_projector_lr": 1e-5}, "--mm_projector_lr 1e-05 .*the merger is frozen"),
        ({"vision_tower_lr": 1e-6}, "--vision_tower_lr 1e-06 .*the encoder is frozen"),
        ({"attn_implementation": "fast"}, "'fast' is unknown"),
        ({"attn_implementation": "flash_attention_2"}, "flash-attn is not installed"),
        ({"dataset_use": None}, "--dataset_use is missing"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"bad_sample_policy": "ignore"}, "choose from .error., .skip."),
        ({"max_pixels": 0}, "--max_pixels 0"),
        ({"video_min_frames": 9}, "--video_min_frames 9 is above --video_max_frames 8"),
        ({"video_min_frames": 1}, "--video_min_frames 1"),
        ({"deepspeed": "zero9.json", "use_cpu": None}, "no such file"),
        ({"deepspeed": '{"bf16": {}}', "use_cpu": None}, "zero_optimization"),
        ({"deepspeed": "scripts/zero2.json", "use_cpu": None}, "--deepspeed needs a launcher, .*qwenvl.train.launch"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "not both"),
        ({"eval_strategy": "epoch"}, "needs --eval_dataset_use"),
        ({"fp16": True}, "--fp16 True needs a GPU"),
        ({"torch_compile_backend": "fast"}, "--torch_compile_backend fast is unknown.*inductor"),
        ({"torch_compile_mode": "fast"}, "--torch_compile_mode fast is unknown.*max-autotune"),
        ({"save_steps": 1.5}, "--save_steps must be an integer if bigger than 1"),
    ],
)
def test_flags_that_contradict_each_other_are_errors(tmp_path: Path, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(tmp_path, **flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dataset", "--dataset is not a flag of this program; did you mean --dataset_use"),
        ("--lora_e", "did you mean --lora_enable"),
        ("--max_p", "did you mean --max_pixels"),
        ("--save-st", "did you mean --save_strategy or --save_steps"),
        ("--lora_rang", "did you mean --lora_r"),
        ("--zzz", "--help lists all flags"),
    ],
)
def test_a_shortened_or_misspelt_flag_is_refused_and_the_candidates_are_named(flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments([flag, "x"])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([], ["tensorboard"]),
        (["--report_to", "none"], []),
        (["--report_to", "tensorboard,wandb"], ["tensorboard", "wandb"]),
        (["--report_to", "tensorboard", "wandb"], ["tensorboard", "wandb"]),
        (["--report_to", "tensorboard, wandb"], ["tensorboard", "wandb"]),
        (["--report_to", "all"], get_available_reporting_integrations()),
    ],
)
def test_metrics_go_to_several_trackers_to_all_or_to_none(given: list[str], names: list[str]) -> None:
    assert parse_arguments(["--use_cpu", *given])[2].report_to == names


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("wandb", "--report_to wandb: it is not installed"),
        ("tensorboard,wandb", "--report_to wandb: it is not installed"),
        ("wandbb", "--report_to wandbb is unknown; choose from wandb"),
        ("none,tensorboard", "none cannot be combined with others"),
    ],
)
def test_a_tracker_that_is_unknown_or_not_installed_is_an_error(tmp_path: Path, report_to: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _check(tmp_path, report_to=report_to)


def test_a_folder_that_has_the_name_of_a_tracker_is_not_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(UserError, match="not installed"):
        _check(tmp_path, report_to="wandb")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"bf16": {}}', "zero_optimization"),
        ('{"zero_optimization": {}, "optimizer": {}}', "learning rates of the components"),
    ],
)
def test_a_bad_deepspeed_file_is_an_error_that_names_it(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content)

    with pytest.raises(UserError, match=rf"zero\.json.*{message}"):
        _check(tmp_path, deepspeed=path, use_cpu=None)


def test_each_learning_rate_acts_on_its_component_alone(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=1e-5)

    assert args.component_learning_rates == {"vision": 2e-5, "merger": 1e-5, "llm": 2e-5}


def test_a_learning_rate_of_zero_is_kept(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=0.0)

    assert args.component_learning_rates["merger"] == 0.0


def test_the_official_warmup_ratio_becomes_a_share_of_the_steps(tmp_path: Path) -> None:
    assert TrainingArguments(output_dir=str(tmp_path), warmup_ratio=0.03).get_warmup_steps(1000) == 30


@pytest.mark.parametrize("flag", ["torch_compile", "gradient_checkpointing"])
def test_a_choice_is_auto_true_or_false_in_any_spelling(tmp_path: Path, flag: str) -> None:
    _, _, by_default = parse_arguments(["--output_dir", str(tmp_path)])
    _, _, alone = parse_arguments(["--output_dir", str(tmp_path), f"--{flag}"])
    _, _, off = parse_arguments(["--output_dir", str(tmp_path), f"--{flag}", "false"])

    assert [getattr(args, flag) for args in (by_default, alone, off)] == [False, True, False]
    notes = {"torch_compile": "compiles_if_it_pays", "gradient_checkpointing": "checkpoints_if_needed"}
    assert [getattr(args, notes[flag]) for args in (by_default, alone, off)] == [True, False, False]
    with pytest.raises(UserError, match=f"--{flag} maybe: expected auto, True or False"):
        parse_arguments(["--output_dir", str(tmp_path), f"--{flag}", "maybe"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples_per_step", "0"], "--samples_per_step 0: expected at least 1"),
        (
            ["--samples_per_step", "8", "--gradient_accumulation_steps", "2"],
            "leave out --gradient_accumulation_steps 2",
        ),
    ],
)
def test_a_number_of_samples_per_step_is_positive_and_stands_alone(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(["--output_dir", str(tmp_path), *flags])

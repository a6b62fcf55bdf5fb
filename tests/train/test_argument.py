from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments, check_arguments


def _check(tmp_path: Path, model: dict | None = None, data: dict | None = None, training: dict | None = None) -> None:
    check_arguments(
        ModelArguments(**{"tune_mm_llm": True, "tune_mm_mlp": True} | (model or {})),
        DataArguments(**{"dataset_use": "mine"} | (data or {})),
        TrainingArguments(**{"output_dir": str(tmp_path), "lora_enable": True} | (training or {})),
    )


def test_the_recipe_of_the_mission_is_accepted(tmp_path: Path) -> None:
    _check(tmp_path, training={"mm_projector_lr": 1e-5, "learning_rate": 2e-5})


@pytest.mark.parametrize(
    ("model", "data", "training", "told"),
    [
        ({"tune_mm_llm": False}, {}, {}, "--tune_mm_llm"),
        ({"tune_mm_llm": False, "tune_mm_mlp": False}, {}, {"lora_enable": False}, "nothing would be trained"),
        ({"tune_mm_mlp": False}, {}, {"mm_projector_lr": 1e-5}, "--mm_projector_lr 1e-05 is for a part that is frozen"),
        ({}, {}, {"vision_tower_lr": 1e-6}, "--vision_tower_lr 1e-06 is for a part that is frozen"),
        ({"attn_implementation": "fast"}, {}, {}, "'fast' is unknown"),
        ({"attn_implementation": "flash_attention_2"}, {}, {}, "flash-attn is not installed"),
        ({}, {"dataset_use": ""}, {}, "--dataset_use is missing"),
        ({}, {"bad_sample_policy": "ignore"}, {}, "choose error or skip"),
        ({}, {"max_pixels": 0}, {}, "--max_pixels 0"),
        ({}, {"video_min_frames": 9}, {}, "--video_min_frames 9 is above --video_max_frames 8"),
        ({}, {"video_min_frames": 1}, {}, "--video_min_frames 1"),
        ({}, {}, {"model_max_length": 0}, "--model_max_length 0"),
        ({}, {}, {"deepspeed": "zero9.json"}, "no such file"),
        ({}, {}, {"warmup_ratio": 1.5}, "--warmup_ratio 1.5"),
        ({}, {}, {"warmup_ratio": 0.1, "warmup_steps": 5}, "not both"),
        ({}, {}, {"eval_strategy": "epoch"}, "needs --eval_dataset_use"),
        ({}, {}, {"per_device_train_batch_size": 0}, "--per_device_train_batch_size 0: give 1 or more"),
        ({}, {}, {"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps 0: give 1 or more"),
        ({}, {}, {"lora_r": 0}, "--lora_r 0: give 1 or more"),
        ({}, {}, {"lora_dropout": 1.5}, "--lora_dropout 1.5"),
        ({}, {}, {"report_to": "wandb"}, "--report_to wandb: it is not installed"),
        ({}, {}, {"label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1 has no effect"),
        ({}, {}, {"dataloader_drop_last": True}, "--dataloader_drop_last True has no effect"),
        ({}, {}, {"push_to_hub": True}, "--push_to_hub True has no effect"),
    ],
)
def test_flags_that_contradict_each_other_are_errors(
    tmp_path: Path, model: dict, data: dict, training: dict, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        _check(tmp_path, model, data, training)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "zero_optimization"),
        ('{"bf16": {}}', "zero_optimization"),
        ('{"zero_optimization": {}, "optimizer": {}}', "learning rates of the components"),
    ],
)
def test_a_bad_deepspeed_file_is_an_error_that_names_it(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content)

    with pytest.raises(UserError, match=rf"zero\.json.*{told}"):
        _check(tmp_path, training={"deepspeed": str(path)})


def test_each_learning_rate_acts_on_its_component_alone(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=1e-5)

    assert args.component_learning_rates == {"vision": 2e-5, "merger": 1e-5, "llm": 2e-5}


def test_a_learning_rate_of_zero_is_kept(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=2e-5, mm_projector_lr=0.0)

    assert args.component_learning_rates["merger"] == 0.0


def test_the_official_warmup_ratio_becomes_a_share_of_the_steps(tmp_path: Path) -> None:
    assert TrainingArguments(output_dir=str(tmp_path), warmup_ratio=0.03).get_warmup_steps(1000) == 30

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from qwenvl.checkpoint.same_run import RULES, Rule, check_same_run, check_same_step
from qwenvl.checkpoint.save import run_arguments
from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output_dir = str(tmp_path_factory.mktemp("run"))
    groups = (ModelArguments(), DataArguments(dataset_use="a.json"), TrainingArguments(output_dir, use_cpu=True))
    return run_arguments(*groups) | {"world_size": 2, "zero_stage": None}


def test_every_flag_has_a_rule_and_no_rule_is_for_none() -> None:
    fields = {field.name for group in (ModelArguments, DataArguments, TrainingArguments) for field in _fields(group)}

    assert fields - RULES.keys() == set(), "say in qwenvl/checkpoint/same_run.py what these flags may do on resume"
    assert RULES.keys() - fields == set()


def _fields(group: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(group)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule is Rule.EQUAL])
def test_what_decides_the_run_must_be_equal(flags: dict[str, Any], tmp_path: Path, name: str) -> None:
    before = flags | {name: "before"}

    with pytest.raises(UserError, match=f"that run had --{name} before, this one has now; give the same"):
        check_same_run(tmp_path, before, flags | {name: "now"})


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule in (Rule.RATE, Rule.LOGGED)])
def test_what_takes_effect_is_reported(
    flags: dict[str, Any], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="qwenvl"):
        check_same_run(tmp_path, flags | {name: "before"}, flags | {name: "now"})

    assert f"--{name} before -> now" in caplog.text


def test_nothing_is_reported_of_the_same_flags_or_of_free_ones(
    flags: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = {name: "now" for name, rule in RULES.items() if rule is Rule.FREE}

    with caplog.at_level(logging.INFO, logger="qwenvl"):
        check_same_run(tmp_path, flags, flags | others)

    assert not caplog.text


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_keeps_its_own_rates_refuses_new_ones(
    flags: dict[str, Any], tmp_path: Path, schedule: str
) -> None:
    before = flags | {"lr_scheduler_type": schedule}

    with pytest.raises(UserError, match="--learning_rate"):
        check_same_run(tmp_path, before, before | {"learning_rate": 1.0})
    with pytest.raises(UserError, match="--lr_scheduler_type"):
        check_same_run(tmp_path, before, flags)


def test_the_measure_of_the_best_model_may_be_set_but_not_changed(flags: dict[str, Any], tmp_path: Path) -> None:
    loss = flags | {"metric_for_best_model": "loss"}

    check_same_run(tmp_path, flags, loss)
    with pytest.raises(UserError, match="--metric_for_best_model loss, this one has token_accuracy"):
        check_same_run(tmp_path, loss, loss | {"metric_for_best_model": "token_accuracy"})


def test_two_names_of_one_folder_or_file_are_one(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "other"):
        (tmp_path / folder).mkdir()
    before = flags | {"model_name_or_path": "base", "custom_vision_encoder": "enc.py:A"}
    now = {"model_name_or_path": f"{tmp_path}/other/../base", "custom_vision_encoder": f"{tmp_path}/enc.py:A"}

    check_same_run(tmp_path, before, flags | now)
    for name, value in (("model_name_or_path", f"{tmp_path}/other"), ("custom_vision_encoder", f"{tmp_path}/enc.py:B")):
        with pytest.raises(UserError, match=f"--{name}"):
            check_same_run(tmp_path, before, flags | now | {name: value})


def test_a_moved_data_set_is_reported_by_its_samples_and_not_by_its_name(flags: dict[str, Any], tmp_path: Path) -> None:
    moved = flags | {"dataset_use": "elsewhere/a.json"}

    check_same_run(tmp_path, flags | {"data": {"records": 1}}, moved)
    with pytest.raises(UserError, match="--dataset_use"):
        check_same_run(tmp_path, flags, moved)


STEP = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 2}


@pytest.mark.parametrize(
    "now", [STEP | {"world_size": 1, "gradient_accumulation_steps": 4}, STEP | {"per_device_train_batch_size": 4}]
)
def test_a_step_may_be_divided_otherwise_but_not_be_another(
    flags: dict[str, Any], tmp_path: Path, now: dict[str, int]
) -> None:
    same = now["gradient_accumulation_steps"] == 4
    if same:
        check_same_run(tmp_path, flags | STEP, flags | now)
    else:
        with pytest.raises(UserError, match=r"\(8 samples a step then, 16 now"):
            check_same_run(tmp_path, flags | STEP, flags | now)


def test_a_step_that_the_number_of_samples_makes_another_is_refused_with_the_accumulation_that_keeps_it(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    before = flags | {"samples_per_step": 6, "gradient_accumulation_steps": 2, "world_size": 1}
    now = before | {"world_size": 2}

    check_same_run(tmp_path, before, now | {"gradient_accumulation_steps": 1})  # not yet known: the data decide
    with pytest.raises(UserError, match="without --samples_per_step, --gradient_accumulation_steps 1 makes them"):
        check_same_step(tmp_path, before, now)
    check_same_run(tmp_path, before, now | {"gradient_accumulation_steps": 1, "samples_per_step": None})


@pytest.mark.parametrize(
    ("both", "message"),
    [
        ({"lora_dropout": 0.1}, "--lora_dropout is drawn in each process"),
        ({"zero_stage": 2}, "partitioned for one number of processes"),
        ({"average_tokens_across_devices": False}, "--average_tokens_across_devices is False"),
        ({"tune_mm_vision": True}, "a trained custom encoder may draw"),
    ],
)
def test_other_processes_are_refused_where_they_would_not_do_the_same(
    flags: dict[str, Any], tmp_path: Path, both: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text('{"vision_config": {"encoder": "rad_dino"}}')
    before, now = flags | STEP | both, flags | STEP | both | {"world_size": 1, "gradient_accumulation_steps": 4}

    with pytest.raises(UserError, match=f"gradient_accumulation_steps 2, this one has 4, and .*{message}"):
        check_same_run(tmp_path, before, now)


def test_a_checkpoint_from_before_the_flag_was_trained_on_weights_in_bf16(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    before = {name: value for name, value in flags.items() if name != "frozen_weights"}

    check_same_run(tmp_path, before, flags)
    with pytest.raises(UserError, match="that run had --frozen_weights bf16, this one has fp8; give the same"):
        check_same_run(tmp_path, before, flags | {"frozen_weights": "fp8"})

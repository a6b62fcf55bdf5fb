import contextlib
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForImageTextToText

from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, TrainingArguments
from qwenvl.train.memory import Sharding, estimate_total
from qwenvl.train.plan import (
    accumulate_samples,
    adapt_to_few_steps,
    checkpoint_if_needed,
    compile_if_it_pays,
    count_steps,
)


def _arguments(tmp_path: Path, **flags: object) -> TrainingArguments:
    return TrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "num_train_epochs": 1} | flags)


def test_steps_are_counted_as_the_trainer_does(tmp_path: Path) -> None:
    assert count_steps(5, _arguments(tmp_path, gradient_accumulation_steps=2, num_train_epochs=2.5)) == (3, 8)
    assert count_steps(5, _arguments(tmp_path, gradient_accumulation_steps=2, max_steps=20)) == (3, 20)


def test_a_run_of_few_steps_is_reported_with_what_to_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training_args = _arguments(tmp_path, gradient_accumulation_steps=2, model_max_length=8192)

    adapt_to_few_steps(1, DataArguments(data_packing=True), training_args)

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    for words in ("only 1 step,", "EPOCHS", "--gradient_accumulation_steps 2 (GRAD_ACCUM)", "--model_max_length 8192"):
        assert words in caplog.text


def test_a_flag_that_cannot_give_more_steps_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapt_to_few_steps(21, DataArguments(), _arguments(tmp_path, per_device_train_batch_size=1))

    assert "only 21 steps," in caplog.text
    assert "lower" not in caplog.text


@pytest.mark.parametrize(("micro_batches", "flags"), [(100, {}), (1, {"max_steps": 1})])
def test_a_run_of_many_steps_or_of_those_asked_for_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, micro_batches: int, flags: dict
) -> None:
    adapt_to_few_steps(micro_batches, DataArguments(), _arguments(tmp_path, **flags))

    assert not caplog.records


@pytest.mark.parametrize(("given", "kept"), [(10, 1), (7, 7), (0.5, 0.5)])
def test_the_only_steps_there_are_are_logged(tmp_path: Path, given: float, kept: float) -> None:
    training_args = _arguments(tmp_path, logging_steps=given, max_steps=7)

    adapt_to_few_steps(7, DataArguments(), training_args)

    assert training_args.logging_steps == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"load_best_model_at_end": True, "eval_steps": 5, "save_steps": 500}, "--save_steps 500 exceeds .* 21 steps"),
        ({"load_best_model_at_end": True, "eval_steps": 500, "save_steps": 500}, "--eval_steps 500 exceeds"),
        ({"save_strategy": "best", "metric_for_best_model": "loss", "eval_steps": 50}, "--eval_steps 50 exceeds"),
        ({"load_best_model_at_end": True, "eval_steps": 21, "save_steps": 21}, None),
        ({"load_best_model_at_end": True, "eval_steps": 0.1, "save_steps": 0.5}, None),
        ({"eval_steps": 500}, None),
        (
            {"load_best_model_at_end": True, "eval_steps": 5, "save_steps": 5, "eval_delay": 22},
            "--eval_delay 22 exceeds",
        ),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch", "eval_delay": 2},
            "--eval_delay 2 exceeds the run's 1 epochs",
        ),
        ({"eval_steps": 5, "eval_delay": 500}, None),
    ],
)
def test_a_best_model_that_would_never_be_found_is_an_error(tmp_path: Path, flags: dict, message: str | None) -> None:
    training_args = _arguments(tmp_path, **{"eval_strategy": "steps"} | flags)

    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        adapt_to_few_steps(21, DataArguments(), training_args)


@pytest.mark.parametrize(
    ("samples", "micro_batches", "steps"),
    [(3000, 100, 1), (900, 100, 4), (1600, 100, 2), (50, 100, 64), (10_000, 100, 1), (6, 1, 1), (10, 4, 4)],
)
def test_a_step_reads_about_as_many_samples_as_asked_for_and_no_more_than_an_epoch(
    tmp_path: Path, samples: int, micro_batches: int, steps: int
) -> None:
    training_args = _arguments(tmp_path, samples_per_step=32)

    accumulate_samples(samples, micro_batches, training_args)

    assert training_args.gradient_accumulation_steps == steps


def test_a_step_that_cannot_be_as_small_as_asked_for_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accumulate_samples(1000, 10, _arguments(tmp_path, samples_per_step=32))

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "a step has 1 of an epoch's 10 micro-batches, 100.0 samples" in caplog.text


def test_without_a_number_of_samples_the_accumulation_stays(tmp_path: Path) -> None:
    training_args = _arguments(tmp_path, gradient_accumulation_steps=3)

    accumulate_samples(300, 10, training_args)

    assert training_args.gradient_accumulation_steps == 3


@pytest.mark.parametrize(
    ("choice", "steps", "on_gpu", "compiles"),
    [
        ("auto", 200, True, True),
        ("auto", 199, True, False),
        ("auto", 10_000, False, False),
        (False, 10_000, True, False),
        (True, 1, False, True),
    ],
)
def test_layers_are_compiled_where_the_run_wins_by_it_or_where_asked_for(
    tmp_path: Path, choice: str | bool, steps: int, on_gpu: bool, compiles: bool
) -> None:
    training_args = _arguments(tmp_path, torch_compile=choice)

    compile_if_it_pays(steps, training_args, on_gpu=on_gpu)

    assert training_args.torch_compile is compiles
    assert training_args.torch_compile_backend == ("inductor" if compiles else None)


@pytest.mark.parametrize(
    ("choice", "free_share", "checkpoints"),
    [("auto", 2.0, False), ("auto", 1.0, True), ("auto", None, False), (False, 0.5, False), (True, 2.0, True)],
)
def test_activations_are_recomputed_where_they_do_not_fit_or_where_asked_for(
    tmp_path: Path, standin: Path, choice: str | bool, free_share: float | None, checkpoints: bool
) -> None:
    training_args = _arguments(tmp_path, gradient_checkpointing=choice)
    model = AutoModelForImageTextToText.from_pretrained(standin)
    summary = SimpleNamespace(max_tokens=64, most_supervised=16, most_patches=32)
    needed = estimate_total(model, summary, training_args, Sharding())

    checkpoint_if_needed(model, summary, training_args, None if free_share is None else needed * free_share)

    assert training_args.activation_checkpointing is checkpoints
    assert (training_args.activation_checkpointing_kwargs == {"use_reentrant": False}) is checkpoints

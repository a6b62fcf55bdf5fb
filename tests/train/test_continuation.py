import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments, get_scheduler

from qwenvl.errors import UserError
from qwenvl.train.argument import ModelArguments
from qwenvl.train.continuation import evaluation_is_due, find_best_checkpoint, follow_flags, prepare_continuation
from qwenvl.train.train_qwen import check_data
from qwenvl.train.trainer import QwenVLTrainer
from tests.train.conftest import RECIPE, losses

Run = Callable[..., Path]
SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
EVALUATED = SAVED | {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
BEST = EVALUATED | {"load_best_model_at_end": True}


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def evaluations(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["eval_loss"]) for entry in history(folder) if "eval_loss" in entry]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def rates(folder: Path) -> list[float]:
    return [entry["learning_rate_llm"] for entry in history(folder) if "loss" in entry]


def optimizer_and_schedule(steps: int, **options: object) -> tuple:
    """Return an optimizer, its schedule, and the options with which its groups were created."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], **options)
    created = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return optimizer, get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=steps), created


def test_a_loaded_optimizer_gets_the_rates_and_options_of_the_flags() -> None:
    old, old_schedule, _ = optimizer_and_schedule(10, lr=1.0, weight_decay=0.0, betas=(0.9, 0.99))
    for _ in range(4):
        old.step()
        old_schedule.step()
    new, new_schedule, options = optimizer_and_schedule(21, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9))
    new.load_state_dict(old.state_dict())
    new_schedule.load_state_dict(old_schedule.state_dict())

    follow_flags(new, new_schedule, options)

    group = new.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.9))
    assert group["lr"] == new_schedule.get_last_lr()[0] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 3 / 20)))
    new.step()
    new_schedule.step()
    assert group["lr"] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 4 / 20)))


def test_the_same_flags_change_no_bit_of_a_loaded_optimizer() -> None:
    optimizer, schedule, options = optimizer_and_schedule(10, lr=0.3, weight_decay=0.1)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    before = dict(optimizer.param_groups[0])

    follow_flags(optimizer, schedule, options)

    assert optimizer.param_groups[0] == before
    assert schedule.get_last_lr() == [before["lr"]]


@pytest.mark.parametrize(
    ("flags", "step", "epoch", "due"),
    [
        ({"eval_strategy": "steps", "eval_steps": 2}, 4, 0.5, True),
        ({"eval_strategy": "steps", "eval_steps": 2}, 3, 0.5, False),
        ({"eval_strategy": "steps", "eval_steps": 2}, 2, 0.5, False),  # evaluated
        ({"eval_strategy": "steps", "eval_steps": 3}, 10, 1.5, True),  # the last
        ({"eval_strategy": "epoch"}, 4, 1.0, True),
        ({"eval_strategy": "epoch"}, 4, 0.5, False),
        ({"eval_strategy": "no"}, 10, 1.0, False),
    ],
)
def test_an_evaluation_is_due_where_the_run_would_have_made_it(
    tmp_path: Path, flags: dict, step: int, epoch: float, due: bool
) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, **flags)
    state = TrainerState(global_step=step, epoch=epoch, max_steps=10, log_history=[{"step": 2, "eval_loss": 1.0}])
    state.compute_steps(args, 10)

    assert evaluation_is_due(args, state) == due


def test_the_best_checkpoint_is_found_where_it_was_moved_or_else_forgotten(tmp_path: Path) -> None:
    (tmp_path / "moved" / "checkpoint-2").mkdir(parents=True)

    state = TrainerState(best_metric=0.5, best_global_step=2)
    find_best_checkpoint(state, (tmp_path, tmp_path / "moved"))
    assert state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")

    state = TrainerState(best_metric=0.5, best_global_step=4)
    find_best_checkpoint(state, (tmp_path, tmp_path / "moved"))
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (None, None, None)


def test_new_rates_decay_length_and_steps_of_saving_take_effect(
    run_training: Run, train_here: Callable[..., QwenVLTrainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_training(**SAVED)
    flags = SAVED | {"max_steps": 7, "learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.9, "save_steps": 3}

    with caplog.at_level(logging.INFO, logger="qwenvl"):
        trainer = train_here(**flags, resume_from_checkpoint=folder / "checkpoint-2")

    assert "--learning_rate 0.002 -> 0.001" in caplog.text
    assert "the schedule now ends at step 7 (4 before)" in caplog.text
    assert rates(folder)[2:] == pytest.approx([1e-3 * (1 - step / 7) for step in range(2, 7)])
    groups = {group["name"]: group for group in trainer.optimizer.param_groups}
    assert (groups["llm"]["weight_decay"], groups["llm"]["betas"]) == (0.1, (0.9, 0.9))
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3", "checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize("batch", [2, 12], ids=["inside an epoch", "at its end"])
def test_a_finished_run_publishes_its_model_and_trains_no_further(
    run_training: Run, tmp_path: Path, batch: int
) -> None:
    flags = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "per_device_train_batch_size": batch}
    folder = run_training(**flags)
    shutil.move(folder / "adapter_model.safetensors", tmp_path)
    (folder / "adapter_config.json").unlink()  # as if killed before it was published

    run_training(**flags | {"learning_rate": 1.0}, resume_from_checkpoint="auto")

    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3"]
    assert same_weights(folder, tmp_path)
    trained_by = json.loads((folder / "run_arguments.json").read_text())
    assert trained_by["learning_rate"] == RECIPE["learning_rate"]
    assert (folder / "adapter_config.json").is_file()
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert not any("train_loss" in entry for entry in state["log_history"])


def test_sigterm_in_the_last_step_publishes_the_model(run_training: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl.train.callbacks.any_process", lambda flag, device: True)

    assert (run_training("last", max_steps=1) / "adapter_config.json").is_file()
    assert not (run_training("first", max_steps=2) / "adapter_config.json").is_file()


def trainer_until(last: int) -> SimpleNamespace:
    """Return what `prepare_continuation` asks of a trainer whose schedule ends at the step `last`."""
    return SimpleNamespace(
        args=SimpleNamespace(eval_on_start=True),
        get_train_dataloader=list,
        set_initial_training_values=lambda args, dataloader: (1, 4, last),
        is_world_process_zero=lambda: True,
        is_local_process_zero=lambda: True,
        add_callback=lambda callback: None,
        run_arguments={"learning_rate": 1.0},
    )


def write_checkpoint(output_dir: Path, step: int) -> str:
    """Write the files of a checkpoint that `prepare_continuation` reads."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    TrainerState(global_step=step, max_steps=4).save_to_json(str(folder / "trainer_state.json"))
    (folder / "run_arguments.json").write_text('{"learning_rate": 0.5}')
    return str(folder)


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path: Path) -> None:
    resume_from = write_checkpoint(tmp_path, step=4)

    with pytest.raises(UserError, match="is at step 4, but the run ends at step 3; raise --max_steps"):
        prepare_continuation(trainer_until(3), str(tmp_path), resume_from)


@pytest.mark.parametrize(("last", "rate"), [(4, 0.5), (7, 1.0)])
def test_a_checkpoint_at_the_end_keeps_the_arguments_it_was_trained_with(
    tmp_path: Path, last: int, rate: float
) -> None:
    trainer = trainer_until(last)

    prepare_continuation(trainer, str(tmp_path), write_checkpoint(tmp_path, step=4))

    assert trainer.run_arguments == {"learning_rate": rate}
    assert not trainer.args.eval_on_start


def test_going_back_starts_a_new_branch_that_auto_continues(run_training: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = SAVED | {"save_steps": 1, "save_total_limit": 3}
    folder = run_training(**flags)
    with monkeypatch.context() as patch:
        patch.setattr("qwenvl.train.callbacks.any_process", lambda flag, device: True)  # stopped at the next step
        run_training(**flags | {"learning_rate": 1e-4}, resume_from_checkpoint=folder / "checkpoint-2")
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3"]
    assert checkpoints(folder / "superseded") == ["checkpoint-3", "checkpoint-4"]

    run_training(**flags | {"learning_rate": 1e-4}, resume_from_checkpoint="auto")

    assert rates(folder)[2:] == pytest.approx([1e-4 * 0.5, 1e-4 * 0.25])
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def fail_at(call: int, evaluation_loop: Callable, seen: list) -> Callable:
    def failing(trainer: QwenVLTrainer, *args: object, **kwargs: object) -> object:
        seen.append(trainer.state.global_step)
        if len(seen) == call:
            raise RuntimeError("out of memory")
        return evaluation_loop(trainer, *args, **kwargs)

    return failing


@pytest.mark.parametrize("schedule", [{}, {"lr_scheduler_type": "reduce_lr_on_plateau"}])
def test_an_evaluation_that_fails_costs_no_training(
    run_training: Run, image_records: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict
) -> None:
    flags = BEST | {"eval_dataset_use": image_records, "greater_is_better": True} | schedule
    if schedule:  # every evaluation lowers the rate
        flags |= {"lr_scheduler_kwargs": json.dumps({"patience": 0, "threshold": 9.0, "factor": 0.5})}
    whole = run_training("whole", **flags | {"max_steps": 6})
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(QwenVLTrainer, "evaluation_loop", fail_at(2, QwenVLTrainer.evaluation_loop, []))
        run_training("failed", **flags | {"max_steps": 6})
    failed = whole.parent / "failed"
    assert checkpoints(failed) == ["checkpoint-2", "checkpoint-4"]
    assert [step for step, _ in evaluations(failed / "checkpoint-2")] == [2]
    assert json.loads((failed / "checkpoint-2" / "trainer_state.json").read_text())["best_model_checkpoint"] == str(
        failed / "checkpoint-2"
    )

    run_training("failed", **flags | {"max_steps": 6}, resume_from_checkpoint="auto")

    assert losses(failed) == losses(whole)
    assert rates(failed) == rates(whole)
    assert evaluations(failed) == evaluations(whole)
    assert same_weights(failed, failed / "checkpoint-2") and same_weights(failed, whole)


def test_an_evaluation_leaves_the_random_numbers_of_training_alone(run_training: Run, image_records: Path) -> None:
    flags = {"lora_dropout": 0.3, "max_steps": 5, "learning_rate": 1e-2}
    alone = run_training("alone", **flags)

    evaluated = run_training("evaluated", **flags, eval_dataset_use=image_records, eval_strategy="steps", eval_steps=1)

    assert losses(evaluated) == losses(alone)
    assert same_weights(evaluated, alone)


def test_a_final_evaluation_that_fails_costs_no_model(
    run_training: Run, image_records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QwenVLTrainer, "evaluation_loop", fail_at(1, QwenVLTrainer.evaluation_loop, []))

    with pytest.raises(RuntimeError, match="out of memory"):
        run_training(eval_dataset_use=image_records)

    assert (tmp_path / "run" / "adapter_config.json").is_file()


def test_the_last_step_of_an_epoch_is_saved_before_it_is_evaluated(
    run_training: Run, image_records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    evaluation_loop = QwenVLTrainer.evaluation_loop

    def watched(trainer: QwenVLTrainer, *args: object, **kwargs: object) -> object:
        saved.append((trainer.state.global_step, checkpoints(tmp_path / "run")))
        return evaluation_loop(trainer, *args, **kwargs)

    monkeypatch.setattr(QwenVLTrainer, "evaluation_loop", watched)
    flags = {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset_use": image_records, "save_strategy": "epoch"}
    folder = run_training(**flags, per_device_train_batch_size=6, max_steps=3, metric_for_best_model="eval_loss")

    two, three = ["checkpoint-2"], ["checkpoint-2", "checkpoint-3"]
    assert saved == [(1, []), (2, two), (3, three)]
    assert [step for step, _ in evaluations(folder / "checkpoint-3")] == [1, 2, 3]


def test_changed_data_ends_a_run_before_its_model_is_built(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, step=4)
    data = {"records": 10, "tokens": 500, "sha256": "a"}
    (Path(folder) / "run_arguments.json").write_text(json.dumps({"data": data}))
    now = {"data": data | {"records": 11}, "eval_data": None, "dataset_use": "a.json"}

    with pytest.raises(UserError, match=r"\(10 records of 500 tokens then, 11 of 500 now\)"):
        check_data(None, now, folder, ModelArguments())

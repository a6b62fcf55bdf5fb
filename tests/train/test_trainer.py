"""Tests of the trainer's own methods, on one that has no model and no data but what each of them reads."""

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState

from qwenvl.data.collators import BatchMeta
from qwenvl.errors import UserError
from qwenvl.train import metrics
from qwenvl.train.finite import StepRecorder
from qwenvl.train.metrics import ThroughputMeter
from qwenvl.train.trainer import QwenVLTrainer


class BareTrainer(QwenVLTrainer):
    """A trainer with nothing but these attributes; `Trainer.__init__` does not run."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


def stepping(model: nn.Module, scaler: torch.amp.GradScaler | None, loss: float = 1.0) -> BareTrainer:
    """Return a trainer after the backward pass of a step."""
    return BareTrainer(
        model=model,
        accelerator=SimpleNamespace(scaler=scaler),
        args=SimpleNamespace(fp16=scaler is not None),
        is_deepspeed_enabled=False,
        state=TrainerState(global_step=4),
        train_dataset=SimpleNamespace(records=[SimpleNamespace(full_location="a.json row 0")]),
        _step_indices=[0],
        _step_losses=[torch.tensor(loss)],
        _steps=StepRecorder(),
    )


def check_step(trainer: BareTrainer) -> None:
    """Record the step and read what was recorded, as the end of the next step would."""
    trainer._record_step()
    trainer._check_finite(trainer._steps.read())


def test_an_fp16_step_that_overflows_is_skipped_and_not_reported() -> None:
    model, scaler = nn.Linear(1, 1, bias=False), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    scaler.scale(model(torch.full((1, 1), 1e3)).sum()).backward()
    assert math.isinf(model.weight.grad.item())

    check_step(stepping(model, scaler))

    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 2.0**126


def test_gradient_norms_in_fp16_are_those_before_scaling() -> None:
    model, scaler = nn.Linear(1, 1, bias=False), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.full((1, 1), 3.0)).sum()).backward()
    trainer = stepping(model, scaler)

    check_step(trainer)

    assert trainer._gradient_norms == {"llm": pytest.approx(3.0)}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_reported_in_fp16_too(loss: float) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones((), requires_grad=True))  # the scale exists from the first use on

    with pytest.raises(UserError, match=r"step 5: loss (nan|inf) is not finite; samples .*a.json row 0"):
        check_step(stepping(nn.Linear(1, 1), scaler, loss))


def test_gradients_that_are_not_finite_are_reported_without_a_scale() -> None:
    model = nn.Linear(1, 1)
    model.weight.grad = torch.full((1, 1), math.inf)

    with pytest.raises(UserError, match=r"step 5: gradient norms \{'llm': inf\} is not finite"):
        check_step(stepping(model, None))


def test_a_log_entry_is_written_before_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = []
    trainer = BareTrainer(
        throughput=ThroughputMeter(),
        _steps=StepRecorder(),
        control=TrainerControl(should_save=True),
        args=SimpleNamespace(lr_scheduler_type="cosine"),
    )
    monkeypatch.setattr(
        Trainer,
        "_maybe_log_save_evaluate",
        lambda trainer: paused.append((trainer.control.should_save, trainer.throughput._paused_at is not None)),
    )

    trainer._maybe_log_save_evaluate()

    assert paused == [(False, False), (True, True)]  # waiting for the GPU, which logging does, is training


@pytest.mark.parametrize("evaluates", [False, True])
def test_nothing_that_a_save_or_an_evaluation_does_counts_as_training(
    monkeypatch: pytest.MonkeyPatch, evaluates: bool
) -> None:
    now = 100.0

    def wait(*args: object, **kwargs: object) -> TrainerControl:
        nonlocal now
        now += 1000.0
        return trainer.control

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    monkeypatch.setattr(Trainer, "_save_checkpoint", wait)  # the model, and the state of the optimizer
    monkeypatch.setattr(Trainer, "_evaluate", lambda *args: {"eval_loss": 1.0} if wait() else None)
    monkeypatch.setattr(Trainer, "_determine_best_metric", lambda *args, **kwargs: False)
    trainer = BareTrainer(
        throughput=ThroughputMeter(),
        _steps=StepRecorder(),
        control=TrainerControl(should_save=True, should_evaluate=evaluates),
        callback_handler=SimpleNamespace(on_save=wait),  # the manifest, which reads all files
        checkpoints=SimpleNamespace(record_evaluation=wait),
        args=SimpleNamespace(save_strategy="steps", lr_scheduler_type="cosine"),
        state=TrainerState(),
    )
    trainer.throughput.count([BatchMeta(num_samples=2, num_tokens=30, num_padding=0)], waited=0.0)
    now += 2.0

    trainer._maybe_log_save_evaluate(None, None, None, None, 1.0, None, 0.0)

    assert now >= 2102.0
    assert trainer.throughput.summary(torch.device("cpu"))["tokens_per_second"] == pytest.approx(30 / 2)


@pytest.mark.parametrize(("with_deepspeed", "steps"), [(True, 4), (False, 1)])
def test_accelerate_counts_accumulation_as_deepspeed_does(
    monkeypatch: pytest.MonkeyPatch, with_deepspeed: bool, steps: int
) -> None:
    def create(trainer: BareTrainer) -> None:
        trainer.accelerator = SimpleNamespace(gradient_accumulation_steps=1)
        trainer.is_deepspeed_enabled = with_deepspeed

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create)
    trainer = BareTrainer(args=SimpleNamespace(gradient_accumulation_steps=4))

    trainer.create_accelerator_and_postprocess()

    assert trainer.accelerator.gradient_accumulation_steps == steps


class RunsOutOfMemory(nn.Module):
    """A model that runs out of memory while it keeps all activations."""

    def __init__(self) -> None:
        super().__init__()
        self.is_checkpointing = False

    def gradient_checkpointing_enable(self, kwargs: dict) -> None:
        self.is_checkpointing = kwargs == {"use_reentrant": False}


def out_of_memory_trainer(monkeypatch: pytest.MonkeyPatch, **args: object) -> BareTrainer:
    def step(trainer: BareTrainer, model: RunsOutOfMemory, inputs: dict, num_items: int) -> torch.Tensor:
        if not model.is_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 594.00 MiB.")
        return torch.tensor(1.0)

    def checkpoint_activations() -> None:
        trainer.args.activation_checkpointing = True
        trainer.args.activation_checkpointing_kwargs = {"use_reentrant": False}

    monkeypatch.setattr(Trainer, "training_step", step)
    defaults = {"checkpoints_if_needed": True, "activation_checkpointing": False, "world_size": 1}
    trainer = BareTrainer(
        model=RunsOutOfMemory(),
        args=SimpleNamespace(checkpoint_activations=checkpoint_activations, **defaults | args),
        accelerator=SimpleNamespace(sync_gradients=False),
        state=TrainerState(global_step=0),
        _step_indices=[0],
        _step_losses=[],
    )
    return trainer


def test_the_failed_attempt_is_let_go_before_the_micro_batch_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Activations:
        pass

    alive: list[weakref.ref] = []

    def step(trainer: BareTrainer, model: RunsOutOfMemory, inputs: dict, num_items: int) -> torch.Tensor:
        if not model.is_checkpointing:
            activations = Activations()
            alive.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert alive[0]() is None
        return torch.tensor(1.0)

    trainer = out_of_memory_trainer(monkeypatch)
    monkeypatch.setattr(Trainer, "training_step", step)

    trainer.training_step(trainer.model, {}, 1)

    assert alive


def test_a_first_step_that_runs_out_of_memory_is_run_again_with_activations_recomputed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = out_of_memory_trainer(monkeypatch)

    assert trainer.training_step(trainer.model, {}, 1).item() == 1.0

    assert trainer.model.is_checkpointing and trainer.args.activation_checkpointing
    assert "out of memory at step 1: layers' activations are recomputed from here on" in caplog.text


def test_a_later_micro_batch_of_a_step_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = out_of_memory_trainer(monkeypatch)
    trainer._step_losses = [torch.tensor(1.0)]  # its gradients are there, and cannot be told from those of this one

    with pytest.raises(UserError, match="out of memory at step 1"):
        trainer.training_step(trainer.model, {}, 1)


def test_deepspeed_casts_the_pixels_of_a_batch_and_not_the_layout_of_its_patches() -> None:
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    trainer = BareTrainer(
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
        args=SimpleNamespace(device=torch.device("cpu")),
        is_deepspeed_enabled=True,
    )
    layout = {"interpolation_weights": torch.ones(2, 4), "max_seqlen": 2}

    inputs = trainer._prepare_inputs({"pixel_values": torch.ones(2, 3), "layouts": {"image": layout}})

    assert inputs["pixel_values"].dtype is torch.bfloat16
    assert inputs["layouts"]["image"]["interpolation_weights"].dtype is torch.float32
    assert inputs["layouts"]["image"]["max_seqlen"] == 2

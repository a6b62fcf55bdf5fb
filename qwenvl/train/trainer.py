"""Transformers' Trainer with this project's batches, parameter groups, loss and checkpoints."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import SchedulerType, Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from qwenvl.checkpoint.card import write_model_card
from qwenvl.checkpoint.disk import CheckpointDisk, checkpoint_bytes, is_checkpoint_folder
from qwenvl.checkpoint.save import CommitCheckpoints, cache_as_for_use, write_run_arguments
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.normalization import PatchNormalizer
from qwenvl.data.packing import PackSampler
from qwenvl.data.workers import ignore_signals
from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.finite import StepRecorder, StepValues
from qwenvl.train.metrics import ThroughputMeter, gradient_norms
from qwenvl.train.out_of_memory import checkpoint_activations_after
from qwenvl.train.param_groups import build_param_groups
from qwenvl.utils.distributed import sum_over_processes
from qwenvl.vision import CUSTOM_MODEL_TYPES, CustomVisionTower

_SCHEDULES_BY_SCORE = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


class EpochDataLoader(DataLoader):
    """A DataLoader whose batches are drawn by a `PackSampler`; it passes the epoch on to the sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the packs."""
        self.batch_sampler.set_epoch(epoch)


class QwenVLTrainer(Trainer):
    """Transformers' Trainer for samples that are planned into batches, with a learning rate for each component."""

    def __init__(
        self,
        *,
        train_sampler: PackSampler,
        eval_sampler: PackSampler | None,
        bad_samples: BadSampleTracker,
        normalize_pixels: PatchNormalizer | None,
        run_arguments: Mapping[str, Any],
        checkpoints: CommitCheckpoints,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(callbacks=[checkpoints, *callbacks], **kwargs)
        self.loss_is_scaled_for_ga = True
        self.checkpoints = checkpoints
        self.train_sampler = train_sampler
        self.eval_sampler = eval_sampler
        self.bad_samples = bad_samples
        self.normalize_pixels = normalize_pixels
        self.run_arguments = dict(run_arguments)
        self.disk = CheckpointDisk(self.args.output_dir)
        self.throughput = ThroughputMeter()
        self._step_indices: list[int] = []
        self._step_losses: list[torch.Tensor] = []
        self.optimizer_options: list[dict[str, Any]] = []
        self._learning_rates: dict[str, float] = {}
        self._gradient_norms: dict[str, float] = {}
        self._steps = StepRecorder()

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; under DeepSpeed, with the accumulation steps of DeepSpeed's configuration.

        The Trainer passes 1, because it divides the loss itself, while DeepSpeed's configuration has the flag's value;
        Accelerate warns of the difference and then takes DeepSpeed's. Can go when the Trainer passes the flag's value:
        https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L825
        https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/accelerator.py#L2216
        """
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's batches; the sampler has already assigned them to the processes."""
        return self._planned_dataloader(self.train_dataset, self.train_sampler)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return this process's share of the evaluation samples."""
        # A loader draws the seed of its workers. If that came from the training's random state, a run resumed after an
        # evaluation would train with other dropout than an uninterrupted one.
        generator = torch.Generator().manual_seed(self.args.seed)
        return self._planned_dataloader(self.eval_dataset, self.eval_sampler, generator)

    def _planned_dataloader(
        self, dataset: Dataset, sampler: PackSampler, generator: torch.Generator | None = None
    ) -> DataLoader:
        args: TrainingArguments = self.args
        workers = args.dataloader_num_workers
        return EpochDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers > 0 else None,
            worker_init_fn=ignore_signals,
            generator=generator,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Read the batches of one optimizer step, and split off their metadata, which the model does not take."""
        started = time.perf_counter()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        metas = [batch.pop("meta") for batch in batches]
        self.throughput.count(metas, waited=time.perf_counter() - started)
        self._step_indices = [index for meta in metas for index in meta.indices]
        self._step_losses = []
        for meta in metas:
            for bad_sample in meta.bad:
                self.bad_samples.report(bad_sample)
        supervised = torch.full((), sum(meta.num_supervised for meta in metas), device=device, dtype=torch.float32)
        if self._counts_tokens_of_all_processes:
            supervised = self.accelerator.reduce(supervised, reduction="sum")
        return [send_to_device(batch, device, non_blocking=True) for batch in batches], supervised

    @property
    def _counts_tokens_of_all_processes(self) -> bool:
        return self.args.average_tokens_across_devices and self.args.world_size > 1

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer over component x decay groups."""
        if self.optimizer is None:
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = build_param_groups(self.model, self.args.component_learning_rates, self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
            # The values of the flags, before a checkpoint's are loaded over them.
            self.optimizer_options = [
                {name: value for name, value in group.items() if name != "params"}
                for group in self.optimizer.param_groups
            ]
        return self.optimizer

    # Steps

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run one micro-batch forward and backward; raise `UserError` if the optimizer step would not be finite.

        Where keeping all activations was this program's choice and turns out to take too much memory, they are
        recomputed from then on.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except UserError as error:
            raise UserError(f"{error}; samples of this step: {self._describe_samples(self._step_indices)}") from error
        except torch.OutOfMemoryError as error:
            step, has_gradients = self.state.global_step + 1, bool(self._step_losses)
            checkpoint_activations_after(error, self.model, self.args, step, has_gradients=has_gradients)
            loss = None
        if loss is None:  # not above, where the error still holds the tensors of the first attempt
            torch.cuda.empty_cache()
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_losses.append(loss)
        if self.accelerator.sync_gradients:
            components = [options["component"] for options in self.optimizer_options]
            self._learning_rates = dict(zip(components, self.lr_scheduler.get_last_lr(), strict=True))
            self._record_step()
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device; the weights of interpolation in its layouts stay float32 under DeepSpeed.

        The Trainer casts all floats there to the precision of the model, which is right for pixels alone. Can go when
        it leaves casting to the model:
        https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L2371
        """
        layouts = {name: value for name, value in inputs.items() if name == "layouts"}
        others = super()._prepare_inputs({name: value for name, value in inputs.items() if name not in layouts})
        return others | send_to_device(layouts, self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return this batch's share of the mean loss over the supervised tokens of all that one optimizer step reads.

        `num_items_in_batch` counts them, over all processes and accumulation steps; the Trainer sums the shares.
        """
        outputs = model(**self.normalized(inputs))
        loss = outputs["loss"] / num_items_in_batch.clamp(min=1)
        if self._counts_tokens_of_all_processes:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        return (loss, outputs) if return_outputs else loss

    def normalized(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of the data loaders as the model takes it: images normalized, if they are uint8 levels."""
        if self.normalize_pixels is None or "pixel_values" not in inputs:
            return inputs
        return {**inputs, "pixel_values": self.normalize_pixels(inputs["pixel_values"])}

    def _record_step(self) -> None:
        """Start to read this step's loss and gradient norms, and check those of the step before."""
        norms = gradient_norms(self.model)
        if (scaler := self.accelerator.scaler) is not None:
            # In fp16 gradients are scaled up, and a step that overflows is left out: that is how the scale is found.
            norms = {name: norm / scaler.get_scale() for name, norm in norms.items()}
        if self.is_deepspeed_enabled and (norm := self.model_wrapped.get_global_grad_norm()) is not None:
            # DeepSpeed has freed the parameters' gradients by now.
            norms = {"all": torch.as_tensor(norm, device=self.args.device)}
        loss = torch.stack(self._step_losses).sum()
        self._check_finite(self._steps.record(self.state.global_step + 1, self._step_indices, loss, norms))

    def _check_finite(self, step: StepValues | None) -> None:
        if step is None:
            return
        self._gradient_norms = step.gradient_norms
        what = step.find_non_finite(loss_alone=self.args.fp16)
        if what is None:
            return
        towers = [module for module in self.model.modules() if isinstance(module, CustomVisionTower)]
        of_encoder = [tower.config.encoder for tower in towers if not tower.gave_finite_features]
        cause = f"; the encoder {of_encoder[0]} returned non-finite features" if of_encoder else ""
        remedy = "check its code and weights, and the samples" if of_encoder else "check them"
        raise UserError(
            f"step {step.step}: {what} is not finite{cause}; samples of this step: "
            f"{step.sample_indices} ({self._describe_samples(step.sample_indices)}); {remedy}, or lower the learning "
            "rates"
        )

    def _describe_samples(self, indices: Sequence[int], limit: int = 4) -> str:
        locations = [self.train_dataset.records[index].full_location for index in indices[:limit]]
        return ", ".join(locations) + (", ..." if len(indices) > limit else "")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add learning rate and gradient norm of each component, throughput and memory to a training entry."""
        if "loss" in logs:
            logs |= {f"learning_rate_{component}": rate for component, rate in self._learning_rates.items()}
            logs |= {f"grad_norm_{component}": norm for component, norm in self._gradient_norms.items()}
            logs |= self.throughput.summary(self.args.device)
        if "train_samples_per_second" in logs:
            # The Trainer counts rows, and a row may be a pack of many samples. The last steps may not be logged yet.
            self.throughput.summary(self.args.device)
            if not self.throughput.total_samples:
                return  # resumed after its last step: there is no loss to average
            logs["train_samples_per_second"] = self.throughput.total_samples / max(logs["train_runtime"], 1e-9)
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless no step is left: the Trainer checks for the last step only after training one.

        Can go when it checks before the first batch as well:
        https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L1873
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # Evaluation

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Save before evaluating where both are due, so that a failing evaluation loses no training.

        The scores are added to the checkpoint afterwards. The Trainer evaluates first; can go when it saves first:
        https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L2270
        """
        evaluates, saves = self.control.should_evaluate, self.control.should_save
        if evaluates or saves or self.control.should_log:
            self._check_finite(self._steps.read())
        # Logged first, as training: it waits for the GPU.
        self.control.should_evaluate = self.control.should_save = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        with self.throughput.paused():
            if saves:
                self.control.should_save = True
                super()._maybe_log_save_evaluate(*args, **kwargs)
            if evaluates:
                self.control.should_evaluate = True
                # These schedules step at each evaluation, and the checkpoint has to hold that step.
                self.control.should_save = saves and self.args.lr_scheduler_type in _SCHEDULES_BY_SCORE
                super()._maybe_log_save_evaluate(*args, **kwargs)
                self.checkpoints.record_evaluation(self.args, self.state)

    def evaluate_this_step(self) -> None:
        """Evaluate the step that a run is resumed at, as its end would have done."""
        self.control.should_evaluate = True
        self._maybe_log_save_evaluate(
            tr_loss=torch.zeros((), device=self.args.device),
            grad_norm=None,
            model=self.model_wrapped,
            trial=None,
            epoch=self.state.epoch,
            ignore_keys_for_eval=None,
            start_time=time.time(),
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the Trainer does, excluding the time from the throughput."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the loss and the token accuracy over all supervised tokens of all processes, without keeping logits.

        Works during training or after it, once the model has been wrapped for the devices.
        """
        model = self.model_wrapped
        model.eval()  # no chaining: https://github.com/deepspeedai/DeepSpeed/blob/v0.19.8/deepspeed/runtime/engine.py#L2889
        loss = correct = tokens = samples = 0.0
        for batch in dataloader:
            meta = batch.pop("meta")
            for bad_sample in meta.bad:
                self.bad_samples.report(bad_sample)
            with self.compute_loss_context_manager():
                sums = model(**self.normalized(self._prepare_inputs(batch)))
            loss += sums["loss"].item()
            correct += sums["correct"].item()
            tokens += meta.num_supervised
            samples += meta.num_samples
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        loss, correct, tokens, samples = sum_over_processes([loss, correct, tokens, samples], self.args.device)
        metrics = {
            f"{metric_key_prefix}_loss": loss / max(tokens, 1.0),
            f"{metric_key_prefix}_token_accuracy": correct / max(tokens, 1.0),
        }
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(samples))

    # Checkpoints

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the Trainer does; a full or failing disk raises `UserError` and leaves no partial checkpoint."""
        with self.disk.explain_errors():
            output = super().train(*args, **kwargs)
            self._check_finite(self._steps.read())
            return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model (or adapter), the processor and the run's arguments, after checking the free disk space."""
        folder = output_dir or self.args.output_dir
        with self.disk.explain_errors(), cache_as_for_use(self.model.config):
            if self.args.should_save:
                optimizer = self.optimizer if is_checkpoint_folder(Path(folder)) else None
                size = checkpoint_bytes(self.model, optimizer, deepspeed=self.is_deepspeed_enabled)
                self.disk.check_room(size)
            self._write_model(folder, _internal_call)

    def _write_model(self, folder: str, internal_call: bool) -> None:
        if isinstance(self.model, PeftModel) and is_deepspeed_zero3_enabled():
            # The Trainer gathers trained weights only, but an adapter also holds the frozen parameters of a fully saved
            # module, such as an encoder's mask token. Can go when it gathers all that PEFT saves:
            # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L4110
            weights = self.accelerator.get_state_dict(self.model_wrapped)
            if self.args.should_save:
                self.model.save_pretrained(folder, state_dict=weights)
                self.processing_class.save_pretrained(folder)
        else:
            super().save_model(folder, internal_call)
        if self.args.should_save:
            # A pickle of all arguments, hub token included; run_arguments.json holds the same values.
            # Can go when the Trainer writes JSON:
            # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py#L4177
            (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_run_arguments(folder, self.run_arguments)
            write_model_card(Path(folder), self.run_arguments, self.state.log_history)
            if self.model.config.model_type in CUSTOM_MODEL_TYPES:
                # An adapter folder has no model configuration; this one describes the tower that the base model lacks.
                self.model.config.save_pretrained(folder)

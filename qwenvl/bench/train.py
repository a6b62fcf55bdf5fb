"""Measure training: samples and tokens per second, and peak memory, of the training command on synthetic X-rays."""

import statistics
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.utils import send_to_device

from qwenvl.checkpoint.load import load_checkpoint
from qwenvl.errors import UserError
from qwenvl.model.build import compute_dtype
from qwenvl.train import train_qwen
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils.json_text import read_json


def train_in_processes(flags: list[str], processes: int) -> None:
    """Train with torchrun, one process per GPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if subprocess.run([*launcher, train_qwen.__file__, *flags]).returncode:
        raise UserError("the training failed; its error is above")


def read_steps(output_dir: Path, warmup_steps: int) -> list[dict[str, float]]:
    """Return the log entry of each step of a finished run. Raises `UserError` if too few steps remain to be timed."""
    state = output_dir / "trainer_state.json"
    history = read_json(state)["log_history"] if state.is_file() else []
    steps = [entry for entry in history if "loss" in entry]
    if len(steps) <= warmup_steps:
        raise UserError(
            f"{len(steps)} steps were trained and the first {warmup_steps} are not timed; raise --max_steps"
        )
    return steps


def summarize(steps: list[dict[str, float]], warmup_steps: int) -> dict[str, float]:
    """Return medians over the timed steps, the peak memory of the main process, and the first and last losses."""
    timed = steps[warmup_steps:]
    few = min(5, len(steps))
    return {
        "samples_per_second": statistics.median(entry["samples_per_second"] for entry in timed),
        "tokens_per_second": statistics.median(entry["tokens_per_second"] for entry in timed),
        "data_wait_share": statistics.median(entry["data_wait_share"] for entry in timed),
        "peak_memory_gib": max(entry["peak_memory_gib"] for entry in steps),
        "steps": len(steps),
        f"loss_of_first_{few}_steps": statistics.mean(entry["loss"] for entry in steps[:few]),
        f"loss_of_last_{few}_steps": statistics.mean(entry["loss"] for entry in steps[-few:]),
    }


@torch.no_grad()
def reload_difference(trainer: QwenVLTrainer, output_dir: Path) -> dict[str, float]:
    """Load the saved model and compare its logits with those of the trained model, for one batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: value for name, value in batch.items() if name not in ("supervised_rows", "targets", "meta")}
    inputs["logits_to_keep"] = batch["supervised_rows"]
    inputs = trainer.normalized(send_to_device(inputs, trainer.args.device))
    loaded, _ = load_checkpoint(
        output_dir,
        dtype=compute_dtype(trainer.args),
        attn_implementation=trainer.run_arguments["attn_implementation"],
        device=trainer.args.device,
    )
    with trainer.accelerator.autocast():
        # With a cache, Transformers does not separate the samples of a packed row.
        expected, found = (model(**inputs, use_cache=False).logits.float() for model in (trainer.model.eval(), loaded))
    return {
        "largest_logit": expected.abs().max().item(),
        "largest_difference_after_reload": (expected - found).abs().max().item(),
    }

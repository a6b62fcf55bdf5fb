"""Owns the training benchmark: samples/s, tokens/s and peak memory of the real training command on made-up films."""

import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from accelerate.utils import send_to_device

from qwenvl.errors import UserError
from qwenvl.model.build import compute_dtype
from qwenvl.tools.cli import ToolParser, cpu_name, positive_int
from qwenvl.tools.made_up_films import write_films, write_records
from qwenvl.train.checkpoint import load_checkpoint
from qwenvl.train.param_groups import format_table
from qwenvl.train.train_qwen import train
from qwenvl.train.trainer import QwenVLTrainer


def measure(flags: list[str], output_dir: Path, warmup_steps: int) -> tuple[QwenVLTrainer, dict[str, float]]:
    """Train with `flags`; return the trainer and the medians over the steps after the first `warmup_steps`."""
    trainer = train(["--output_dir", str(output_dir), *flags])
    if trainer is None:
        raise UserError("--dry_run True trains nothing, so there is nothing to measure; leave it out")
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    timed = steps[warmup_steps:]
    if not timed:
        raise UserError(
            f"{len(steps)} steps were logged and the first {warmup_steps} are not timed; give more --max_steps"
        )
    few = min(5, len(steps))
    return trainer, {
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
    """Load what the trainer has saved and compare its logits with the trained model's, for one batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "meta")}
    inputs = send_to_device(inputs, trainer.args.device)
    loaded, _ = load_checkpoint(
        output_dir,
        dtype=compute_dtype(trainer.args),
        attn_implementation=trainer.run_arguments["attn_implementation"],
        device=trainer.args.device,
    )
    with trainer.accelerator.autocast():
        # With a cache, Transformers does not look for the samples of a packed row.
        expected, found = (model(**inputs, use_cache=False).logits.float() for model in (trainer.model.eval(), loaded))
    return {
        "largest_logit": expected.abs().max().item(),
        "largest_difference_after_reload": (expected - found).abs().max().item(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; flags that it does not know go to the training command."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ToolParser(__doc__)
    parser.add_argument("--films", type=positive_int, default=512, help="number of records made")
    parser.add_argument("--side", type=positive_int, default=672, help="longest side of a film in pixels")
    parser.add_argument("--words", type=positive_int, default=100, help="words in a report, about")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--reload", action="store_true", help="also load the saved model and compare its logits")
    parser.add_argument("--out", default=None, help="also write the result, with all losses, to this JSON file")
    options, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        films, output_dir = Path(scratch) / "films.json", Path(scratch) / "output"
        write_records(films, write_films(Path(scratch), options.films, options.side), options.words)
        flags += ["--dataset_use", str(films), "--report_to", "none", "--save_strategy", "no"]
        trainer, result = measure(flags, output_dir, options.warmup)
        if options.reload:
            result |= reload_difference(trainer, output_dir)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    print(f"command: python tools/bench_train.py {shlex.join(argv)}")
    print(f"machine: {machine}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(format_table([tuple(result), tuple(f"{value:.4g}" for value in result.values())]))
    if options.out:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        Path(options.out).write_text(json.dumps(result | {"losses": losses}, indent=2), encoding="utf-8")
    return 0

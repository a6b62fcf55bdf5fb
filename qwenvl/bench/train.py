"""Owns the training benchmark: samples/s, tokens/s and peak memory of the real training command on made-up films."""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from accelerate.utils import send_to_device

from qwenvl.bench.synthetic_xrays import write_films, write_records
from qwenvl.checkpoint.load import load_checkpoint
from qwenvl.errors import UserError
from qwenvl.model.build import compute_dtype
from qwenvl.train import train_qwen
from qwenvl.train.param_groups import format_table
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.utils.cli import ToolParser, cpu_name, positive_int, refuse_inputs


def train_in_processes(flags: list[str], processes: int) -> None:
    """Train with torchrun, one process a GPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if subprocess.run([*launcher, train_qwen.__file__, *flags]).returncode:
        raise UserError("the training failed; what it said stands above")


def read_steps(output_dir: Path, warmup_steps: int) -> list[dict[str, float]]:
    """Return what a finished run has logged of each step. Raises `UserError` if too few are left to be timed."""
    state = output_dir / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
    steps = [entry for entry in history if "loss" in entry]
    if len(steps) <= warmup_steps:
        raise UserError(
            f"{len(steps)} steps were trained and the first {warmup_steps} are not timed; give more --max_steps"
        )
    return steps


def summarize(steps: list[dict[str, float]], warmup_steps: int) -> dict[str, float]:
    """Return the medians over the steps that are timed, the peak memory of the main process, and how the loss went."""
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
    parser.add_argument("--nproc_per_node", type=positive_int, default=1, help="processes, one a GPU")
    parser.add_argument("--reload", action="store_true", help="also load the saved model and compare its logits")
    parser.add_argument("--out", default=None, help="also write the result, with all losses, to this JSON file")
    options, flags = parser.parse_known_args(argv)
    if options.reload and options.nproc_per_node > 1:
        raise UserError("--reload compares with the model of one process; leave out --nproc_per_node")
    if options.out:
        refuse_inputs([Path(options.out)], flags)
    with tempfile.TemporaryDirectory() as scratch:
        films, output_dir = Path(scratch) / "films.json", Path(scratch) / "output"
        write_records(films, write_films(Path(scratch), options.films, options.side), options.words)
        flags += ["--dataset_use", str(films), "--report_to", "none", "--save_strategy", "no"]
        flags += ["--output_dir", str(output_dir)]
        if options.nproc_per_node > 1:
            train_in_processes(flags, options.nproc_per_node)
        else:
            trainer = train_qwen.train(flags)
        steps = read_steps(output_dir, options.warmup)
        result = summarize(steps, options.warmup)
        if options.reload:
            result |= reload_difference(trainer, output_dir)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    print(f"command: python tools/bench_train.py {shlex.join(argv)}")
    print(f"machine: {machine}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(format_table([tuple(result), tuple(f"{value:.4g}" for value in result.values())]))
    if options.out:
        result |= {"losses": [entry["loss"] for entry in steps]}
        Path(options.out).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0

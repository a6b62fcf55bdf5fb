"""Owns the training benchmark: samples/s, tokens/s and peak memory of the real training command on made-up films."""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from qwenvl.train.param_groups import format_table
from qwenvl.train.train_qwen import train

_ANSWER = "the lungs are clear, the heart is of normal size and there is no pleural effusion or focal opacity"


def write_films(folder: Path, count: int, size: tuple[int, int], words: int) -> Path:
    """Write `count` records, each a noise picture of `size` (height, width) and an answer of so many words."""
    random = np.random.default_rng(0)
    records = []
    for index in range(count):
        pixels = random.integers(0, 255, (size[0] // 8, size[1] // 8), dtype=np.uint8)
        name = f"film_{index:05d}.jpg"
        Image.fromarray(pixels).resize((size[1], size[0])).save(folder / name)
        answer = " ".join(random.choice(_ANSWER.split(), words))
        records.append(
            {
                "image": name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWrite the findings of this film."},
                    {"from": "gpt", "value": answer},
                ],
            }
        )
    path = folder / "films.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def measure(flags: list[str], output_dir: Path, warmup_steps: int) -> dict[str, float]:
    """Train with `flags` and return the medians over the steps after the first `warmup_steps`, and the peak memory."""
    train(["--output_dir", str(output_dir), *flags])
    history = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    timed = steps[warmup_steps:]
    return {
        "samples_per_second": statistics.median(entry["samples_per_second"] for entry in timed),
        "tokens_per_second": statistics.median(entry["tokens_per_second"] for entry in timed),
        "data_wait_share": statistics.median(entry["data_wait_share"] for entry in timed),
        "peak_memory_gib": max(entry["peak_memory_gib"] for entry in steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; flags that it does not know go to the training command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=512, help="number of records made")
    parser.add_argument("--height", type=int, default=640, help="height of a film in pixels")
    parser.add_argument("--width", type=int, default=672, help="width of a film in pixels")
    parser.add_argument("--words", type=int, default=100, help="words in an answer")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--out", default=None, help="also write the result to this JSON file")
    arguments, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        films = write_films(Path(scratch), arguments.films, (arguments.height, arguments.width), arguments.words)
        flags += ["--dataset_use", str(films), "--report_to", "none", "--save_strategy", "no"]
        result = measure(flags, Path(scratch) / "output", arguments.warmup)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"command: python tools/bench_train.py {' '.join(sys.argv[1:] if argv is None else argv)}")
    print(f"machine: {machine}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(format_table([tuple(result), tuple(f"{value:.4g}" for value in result.values())]))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0

"""Measure the data path: images a second, the seconds until a large dataset is planned, and what its starts cost."""

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers
from torch.utils.data import DataLoader

from qwenvl.bench.synthetic_xrays import write_films, write_records
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.data.packing import PackSampler, plan_packs
from qwenvl.model.build import load_processor
from qwenvl.utils.cli import ToolParser, cpu_name, default_workers, positive_int, print_summary

_PLANNING_FILM_SIDE = 512


class Stopwatch:
    """Keeps the seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function, add its time under `step`, and return what it returns."""
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds[step] = time.perf_counter() - started
        return result


def bench_planning(encoder: RecordEncoder, options: argparse.Namespace, folder: Path) -> list[tuple[str, str]]:
    """Time everything between an annotation file and the first batch's list of samples."""
    names = write_films(folder, options.records, _PLANNING_FILM_SIDE)
    write_records(folder / "train.json", names, options.words)
    watch, cache = Stopwatch(), str(folder)
    records = watch.time(
        "read and check the annotations", load_datasets, str(folder / "train.json"), 0, BadSampleTracker()
    ).records
    watch.time("scan the headers, first run", read_media_sizes, records, cache)
    sizes = watch.time("scan the headers, cached", read_media_sizes, records, cache)
    lengths = watch.time("count the tokens", TokenCounter(encoder).count, records, sizes).total
    packs = watch.time("plan the packs", plan_packs, lengths, options.model_max_length)
    sampler = PackSampler(packs, 1, 1, 0, 0, lengths)
    watch.time("order one epoch", list, sampler)
    rows = [(step, f"{seconds:.2f} s") for step, seconds in watch.seconds.items()]
    total = sum(watch.seconds.values()) - watch.seconds["scan the headers, first run"]
    fill = lengths.sum() / (len(packs) * options.model_max_length)
    return [
        *rows,
        ("all but the first scan", f"{total:.2f} s"),
        ("tokens of a record, mean", f"{lengths.mean():.0f}"),
        (f"packs of {options.model_max_length}", f"{len(packs):,}"),
        ("packs are full to", f"{fill:.2%}"),
    ]


def bench_loading(
    encoder: RecordEncoder, options: argparse.Namespace, folder: Path, longest_side: int
) -> list[tuple[str, str]]:
    """Time the way from JPEG files to samples, in this process with one thread and in all workers."""
    names = write_films(folder, options.films, longest_side)
    write_records(folder / "train.json", names, options.words)
    records = load_datasets(str(folder / "train.json"), 0, BadSampleTracker()).records
    counts = TokenCounter(encoder).count(records, read_media_sizes(records, str(folder)))
    packs = [[index] for index in range(len(records))]
    dataset = SupervisedDataset(records, counts, packs, encoder)
    sampler = PackSampler(packs, 1, 1, 0, 0, dataset.lengths)
    rows = []
    for workers in (0, options.workers):
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=len, num_workers=workers)
        batches = iter(loader)
        next(batches)
        started = time.perf_counter()
        loaded = sum(1 for _ in batches)
        rate = loaded / (time.perf_counter() - started)
        where = "one core" if workers == 0 else f"{workers} worker processes"
        rows.append((f"pictures of {longest_side} pixels, {where}", f"{rate:.1f} /s"))
    return [
        *rows,
        (f"tokens of such a sample, mean (at most {options.max_pixels} pixels)", f"{counts.total.mean():.0f}"),
    ]


def find_model(folder: str | None, scratch: Path) -> str:
    """Return the model folder, or that of a stand-in where none is given."""
    if folder is not None:
        return folder
    from qwenvl.bench.standin import build_standin

    return str(build_standin(scratch))


def build_processor(folder: str | None, scratch: Path) -> transformers.ProcessorMixin:
    """Return the processor of a model folder, or that of a stand-in where none is given."""
    return load_processor(find_model(folder, scratch))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print a table."""
    parser = ToolParser(__doc__)
    parser.add_argument("--model_name_or_path", default=None, help="whose processor to use (default: a stand-in's)")
    parser.add_argument("--records", type=positive_int, default=100_000, help="records whose packs are planned")
    parser.add_argument("--words", type=positive_int, default=150, help="words of a report, on average")
    parser.add_argument("--model_max_length", type=positive_int, default=8192, help="tokens of a pack")
    parser.add_argument(
        "--starts",
        type=positive_int,
        default=None,
        help="measure a run's first and second start on so many records, and nothing else (1000000: half an hour)",
    )
    parser.add_argument("--distinct", action="store_true", help="give each record of --starts a film of its own")
    parser.add_argument("--films", type=positive_int, default=64, help="pictures that are decoded")
    parser.add_argument("--sides", type=positive_int, nargs="+", default=[3056, 1024], help="longest sides of pictures")
    parser.add_argument("--max_pixels", type=positive_int, default=28 * 28 * 576, help="most pixels after resizing")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="DataLoader workers")
    options = parser.parse_args(argv)
    # One thread a process, as DataLoader workers have; without it "one core" would be all of them.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        if options.starts is not None:
            return print_starts(options, argv, scratch)
        processor = build_processor(options.model_name_or_path, scratch / "model")
        processor.image_processor.size = {"shortest_edge": 28 * 28 * 16, "longest_edge": options.max_pixels}
        encoder = RecordEncoder(processor)
        rows = []
        for side in options.sides:
            rows += bench_loading(encoder, options, _made(scratch / str(side)), side)
        planning = bench_planning(encoder, options, _made(scratch / "planning"))
    print_conditions(argv)
    print_summary("From files to samples", rows)
    print_summary(f"From {options.records:,} records to packs", planning)
    return 0


def print_starts(options: argparse.Namespace, argv: list[str] | None, scratch: Path) -> int:
    """Measure the two starts and print a table."""
    from qwenvl.bench.starts import bench_starts

    model = find_model(options.model_name_or_path, scratch / "model")
    data = _made(scratch / "starts")
    rows = bench_starts(model, options.starts, options.words, options.model_max_length, options.distinct, data)
    print_conditions(argv)
    print_summary(f"Starting on {options.starts:,} records", rows)
    return 0


def print_conditions(argv: list[str] | None) -> None:
    """Print the command, the machine and the versions."""
    print(f"command: python tools/bench_data.py {shlex.join(sys.argv[1:] if argv is None else argv)}")
    print(f"machine: {cpu_name()}, {default_workers()} of {os.cpu_count()} cores")
    print(
        f"versions: Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Pillow {PIL.__version__}"
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder

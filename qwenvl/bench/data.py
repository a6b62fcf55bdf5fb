"""Measure the data path: images per second, the seconds to plan a large dataset, and the cost of its starts."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from torch.utils.data import DataLoader

from qwenvl.bench.synthetic_xrays import write_records, write_xrays
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.data.packing import PackSampler, plan_packs
from qwenvl.model.build import load_processor

_PLANNING_SIDE = 512


class Stopwatch:
    """The seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function, add its time under `step`, and return what it returns."""
        started = time.perf_counter()
        result = function(*arguments)
        self.seconds[step] = time.perf_counter() - started
        return result


def bench_planning(encoder: RecordEncoder, options: argparse.Namespace, folder: Path) -> list[tuple[str, str]]:
    """Time all steps from an annotation file to the indices of the first batch."""
    names = write_xrays(folder, options.records, _PLANNING_SIDE)
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
        ("tokens per record, mean", f"{lengths.mean():.0f}"),
        (f"packs of {options.model_max_length}", f"{len(packs):,}"),
        ("fill of the packs", f"{fill:.2%}"),
    ]


def bench_loading(
    encoder: RecordEncoder, options: argparse.Namespace, folder: Path, longest_side: int
) -> list[tuple[str, str]]:
    """Time turning JPEG files into samples, in this process with one thread and in all workers."""
    names = write_xrays(folder, options.num_images, longest_side)
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
        unit = "one core" if workers == 0 else f"{workers} worker processes"
        rows.append((f"images of {longest_side} pixels, {unit}", f"{rate:.1f} /s"))
    return [
        *rows,
        (f"tokens per sample, mean (at most {options.max_pixels} pixels)", f"{counts.total.mean():.0f}"),
    ]


def find_model(folder: str | None, scratch: Path) -> str:
    """Return the model folder, or that of a new stand-in model if none is given."""
    if folder is not None:
        return folder
    from qwenvl.bench.standin import build_standin

    return str(build_standin(scratch))


def build_processor(folder: str | None, scratch: Path) -> transformers.ProcessorMixin:
    """Return the processor of a model folder, or that of a new stand-in model if none is given."""
    return load_processor(find_model(folder, scratch))

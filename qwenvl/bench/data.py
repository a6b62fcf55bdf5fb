"""Measure the data path: images per second, the seconds to plan a large dataset, and the cost of its starts."""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from qwenvl.bench.synthetic_xrays import write_records, write_xrays
from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSampleTracker, Record
from qwenvl.data.collators import FlattenedDataCollatorForSupervisedDataset
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, read_media_sizes
from qwenvl.data.media.image_reader import ImageReader
from qwenvl.data.media.images import load_image
from qwenvl.data.packing import PackSampler, SampleRef, plan_packs
from qwenvl.model.build import load_processor

_PLANNING_SIDE = 512
_COMPARED = 8
# Pixels of the stand-in's processor, as of Qwen3-VL's, lie in -1..1.
_LEVELS_OF_ONE = 127.5


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
    processor: transformers.ProcessorMixin, options: argparse.Namespace, folder: Path, longest_side: int
) -> list[tuple[str, str]]:
    """Time reading JPEG files in this process with one thread, and packs of them through the data loader's workers.

    Each is timed as training reads images, and for comparison by decoding each whole and normalizing it in float32.
    """
    names = write_xrays(folder, options.num_images, longest_side)
    write_records(folder / "train.json", names, options.words)
    records = load_datasets(str(folder / "train.json"), 0, BadSampleTracker()).records
    plain, fast = RecordEncoder(processor), RecordEncoder(processor)
    plain.load_image = load_image
    fast.defer_normalization()
    counts = TokenCounter(fast).count(records, read_media_sizes(records, str(folder)))
    packs = plan_packs(counts.total, options.model_max_length)
    rows = []
    for how, encoder in (("whole and as float32", plain), ("as in training", fast)):
        what = f"{longest_side} pixels, {how}"
        dataset = SupervisedDataset(records, counts, packs, encoder)
        rows.append((f"{what}, one core", f"{_images_per_core_second(dataset):.1f} /s"))
        rows.append((f"{what}, {options.workers} workers", _time_workers(dataset, options.workers)))
    return [
        *rows,
        (f"{longest_side} pixels, difference of the two", _difference(processor, records)),
        (f"tokens per sample, mean (at most {options.max_pixels} pixels)", f"{counts.total.mean():.0f}"),
    ]


def _images_per_core_second(dataset: SupervisedDataset) -> float:
    """Return samples for each second of this process's time on the processor, which other work does not stretch."""
    dataset[SampleRef(0)]
    started = time.process_time()
    for index in range(len(dataset)):
        dataset[SampleRef(index)]
    return len(dataset) / (time.process_time() - started)


def _time_workers(dataset: SupervisedDataset, num_workers: int) -> str:
    """Describe the loading of all samples: rates, and what one costs the main process, which copies its pixels once.

    The copy stands for the one into pinned memory, for which this machine may have no GPU.
    """
    collator = FlattenedDataCollatorForSupervisedDataset(dataset.encoder.blank_samples())
    sampler = PackSampler(dataset.packs, 1, 1, 0, 0, dataset.lengths)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collator, num_workers=num_workers)
    before = time.perf_counter(), *map(_processor_seconds, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    num_bytes = sum(batch["pixel_values"].clone().nbytes for batch in loader)
    after = time.perf_counter(), *map(_processor_seconds, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    waited, main, workers = (end - start for start, end in zip(before, after, strict=True))
    count = len(dataset)
    return (
        f"{count / waited:.1f} /s, {count / (main + workers):.1f} /s and core, {num_bytes / count / 1e6:.1f} MB and "
        f"{1000 * main / count:.2f} ms of the main process an image"
    )


def _difference(processor: transformers.ProcessorMixin, records: Sequence[Record]) -> str:
    """Describe how far the pixels that the model gets are from those of images that are decoded whole."""
    differences = []
    for record in records[:_COMPARED]:
        (whole,), (read,) = (
            [processor.image_processor([load(path)], return_tensors="pt")["pixel_values"] for path in record.images]
            for load in (load_image, ImageReader(processor.image_processor))
        )
        differences.append((whole - read).abs().flatten() * _LEVELS_OF_ONE)
    levels = torch.cat(differences)
    return f"{levels.mean():.2f} of 255 levels on average, at most {levels.max():.0f}"


def _processor_seconds(whose: int) -> float:
    """Return the processor time of this process, or of its children that have ended."""
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime


def find_model(folder: str | None, scratch: Path) -> str:
    """Return the model folder, or that of a new stand-in model if none is given."""
    if folder is not None:
        return folder
    from qwenvl.bench.standin import build_standin

    return str(build_standin(scratch))


def build_processor(folder: str | None, scratch: Path) -> transformers.ProcessorMixin:
    """Return the processor of a model folder, or that of a new stand-in model if none is given."""
    return load_processor(find_model(folder, scratch))

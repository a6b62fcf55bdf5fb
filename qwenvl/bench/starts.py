"""Measure the start of a run on a large dataset: the first, which reads the data, and a second from the cache."""

import itertools
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from qwenvl.bench.synthetic_xrays import draw_reports, write_xrays
from qwenvl.checkpoint.data_digest import describe_data
from qwenvl.data.arguments import DataArguments
from qwenvl.data.data_processor import DataModule, make_supervised_data_module
from qwenvl.model.build import load_processor

_SIDE = 512
_DISTINCT = 64
_SAMPLES_OF_A_WORKER = 300


class StartCost(NamedTuple):
    """Costs of a start: CPU and wall seconds, peak MiB of the process, MiB before the data, and MiB of a worker."""

    cpu: float
    wall: float
    peak: float
    before: float
    worker: float
    num_samples: int
    digest: str


def bench_starts(
    model: str, num_records: int, words: int, model_max_length: int, distinct: bool, folder: Path
) -> list[tuple[str, str]]:
    """Write a dataset and start on it twice, each time in a new process; the second uses the cache of the first."""
    path = write_dataset(folder, num_records, words, distinct)
    rows = [("annotation file", f"{path.stat().st_size / 1e6:,.0f} MB")]
    costs = []
    for name in ("first start", "second start"):
        # A new process, whose peak memory is that of the start.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            cost = pool.submit(measure_start, str(path), model, model_max_length, str(folder / "cache")).result()
        costs.append(cost)
        rows += [
            (f"{name}, CPU time (wall time)", f"{cost.cpu:.1f} s ({cost.wall:.1f} s)"),
            (f"{name}, peak memory (before the data)", f"{cost.peak:,.0f} MiB ({cost.before:,.0f} MiB)"),
            (f"{name}, private memory of a worker", f"{cost.worker:,.0f} MiB"),
        ]
    if costs[0].digest != costs[1].digest:
        raise RuntimeError(f"the second start has other samples than the first: {costs}")
    return [*rows, ("samples", f"{costs[1].num_samples:,}")]


def write_dataset(folder: Path, num_records: int, words: int, distinct: bool) -> Path:
    """Write a JSONL file of `num_records` records; if `distinct`, each has its own image (a hard link)."""
    names = write_xrays(folder, num_records if distinct else min(_DISTINCT, num_records), _SIDE)
    question = {"from": "human", "value": "<image>\nWrite the findings and the impression of this X-ray."}
    path = folder / "train.jsonl"
    with open(path, "w", encoding="utf-8") as stream:
        for name, report in zip(itertools.cycle(names), draw_reports(num_records, words), strict=False):
            turns = [question, {"from": "gpt", "value": report}]
            stream.write(f"{json.dumps({'image': name, 'conversations': turns})}\n")
    return path


def measure_start(annotation_path: str, model: str, model_max_length: int, cache_dir: str) -> StartCost:
    """Build the data of a run in this process, compute its digest as a checkpoint does, and start a worker."""
    torch.set_num_threads(1)
    processor = load_processor(model)
    flags = DataArguments(dataset_use=annotation_path, data_packing=True, media_cache_dir=cache_dir)
    training_args = TrainingArguments(use_cpu=True, per_device_train_batch_size=1, seed=0)
    before, cpu, wall = _memory("status", "VmRSS"), time.process_time(), time.perf_counter()
    data = make_supervised_data_module(processor, flags, training_args, model_max_length)
    described = describe_data(data.train_dataset)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _memory("status", "VmHWM")
    return StartCost(cpu, wall, peak, before, _worker_memory(data), described["records"], described["sha256"])


def _worker_memory(data: DataModule) -> float:
    """Return the private memory in MiB of a DataLoader worker that has encoded some hundred samples."""
    loader = DataLoader(
        data.train_dataset,
        batch_sampler=data.train_sampler,
        collate_fn=_report_worker,
        num_workers=1,
        # As in training; a spawned process would need a picklable dataset.
        multiprocessing_context="fork",
    )
    num_samples, memory = 0, 0.0
    for count, private in loader:
        num_samples, memory = num_samples + count, private
        if num_samples >= _SAMPLES_OF_A_WORKER:
            break
    return memory


def _report_worker(samples: list) -> tuple[int, float]:
    return len(samples), _memory("smaps_rollup", "Private_Clean", "Private_Dirty")


def _memory(file: str, *names: str) -> float:
    """Return the sum in MiB of these entries of a file of this process in /proc."""
    lines = Path(f"/proc/{os.getpid()}/{file}").read_text(encoding="ascii").splitlines()
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return sum(int(values[name].split()[0]) for name in names) / 1024

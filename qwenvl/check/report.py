"""Report the result of the pre-flight check: problems, and tables of lengths, batches and memory."""

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwenvl.check.arguments import CheckFlags
from qwenvl.data.annotations import BadSample, Record
from qwenvl.data.data_processor import SupervisedDataset
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounts
from qwenvl.data.media.frames import frame_paths, is_frame_list
from qwenvl.data.packing import PackSampler, plan_packs
from qwenvl.data.summary import DataSummary, summarize
from qwenvl.model.build import build_model
from qwenvl.train.memory import memory_table
from qwenvl.train.plan import micro_batches_per_step
from qwenvl.vision import CustomVisionConfig

_PERCENTILES = (50, 95, 99)
_MAX_BINS = 80


@dataclass(frozen=True)
class Problem:
    """One row of problems.jsonl; `row` is the location in the file ("row 12", "line 13", "row 3 item 0")."""

    file: str
    row: str
    check: str
    reason: str
    path: str | None


class ProblemList:
    """Collects the problems of all checks; records without one are valid."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._invalid: set[str] = set()

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, check: str, samples: Iterable[BadSample]) -> None:
        """Add what a check found; the same problem of the same record counts once."""
        for bad in samples:
            # A video that is given as frames is shown as its first frame: the list of frames is internal.
            path = next(iter(frame_paths(bad.path)), bad.path) if bad.path and is_frame_list(bad.path) else bad.path
            self._problems[Problem(bad.source, bad.location, check, bad.reason, path)] = None
            self._invalid.add(bad.full_location)

    def valid(self, records: Iterable[Record]) -> list[Record]:
        """Return the records without a problem so far."""
        return [record for record in records if record.full_location not in self._invalid]

    def is_valid(self, record: Record) -> bool:
        """Whether no check has found a problem with this record so far."""
        return record.full_location not in self._invalid

    def rows(self) -> list[dict[str, Any]]:
        """Return all problems in the order of the files."""
        ordered = sorted(self._problems, key=lambda each: (each.file, [int(n) for n in re.findall(r"\d+", each.row)]))
        return [asdict(problem) for problem in ordered]

    def by_check(self) -> list[tuple[str, int]]:
        """Return how many problems each check found."""
        return sorted(Counter(problem.check for problem in self._problems).items())


@dataclass(frozen=True)
class ValidData:
    """The training records without a problem, in one order: records (n), counts (n,), and packs of the file."""

    records: Sequence[Record]
    counts: TokenCounts
    packs: list[list[int]] | None


def length_rows(lengths: np.ndarray, limit: int) -> list[tuple[str, Any]]:
    """Return the rows of a table about `lengths`, the tokens of the readable records, (n,), with percentiles."""
    longer = lengths > limit
    return [
        *(
            (f"tokens of a record, {share} % have at most", int(np.percentile(lengths, share)))
            for share in _PERCENTILES
        ),
        ("tokens of a record, most", int(lengths.max())),
        (f"records over --model_max_length {limit}", int(longer.sum())),
        ("tokens of these", int(lengths[longer].sum())),
    ]


def summarize_batches(data: ValidData, flags: CheckFlags, encoder: RecordEncoder) -> dict[str, DataSummary]:
    """Plan an epoch of padded, flattened and packed batches each, like training with these flags."""
    lengths = data.counts.total
    single = [[index] for index in range(len(lengths))]
    packed = plan_packs(lengths, flags.training.model_max_length, flags.seed) if data.packs is None else data.packs
    summaries = {}
    for name, packs in (("padded", single), ("flattened", single), ("packed", packed)):
        sampler = PackSampler(
            packs, flags.training.per_device_train_batch_size, flags.sharding.processes, 0, flags.seed, lengths
        )
        dataset = SupervisedDataset(data.records, data.counts, packs, encoder)
        summaries[name] = summarize(dataset, sampler, padded=name == "padded")
    return summaries


def chosen_batches(flags: CheckFlags) -> str:
    """Return which of the three kinds of batches the flags choose."""
    if flags.data.data_packing:
        return "packed"
    return "flattened" if flags.data.data_flatten else "padded"


def batch_table(summaries: dict[str, DataSummary], flags: CheckFlags) -> list[tuple[str, ...]]:
    """Return a table that compares the three kinds of batches; * marks the one that the flags choose."""
    rows = [("batches", "padding", "packs full to", "most tokens", "batches per epoch", "steps per epoch")]
    for name, summary in summaries.items():
        accumulation = micro_batches_per_step(summary.num_samples, summary.micro_batches, flags.training)
        fill = summary.num_tokens / (summary.num_packs * flags.training.model_max_length)
        rows.append(
            (
                f"{name} *" if name == chosen_batches(flags) else name,
                f"{summary.padding_share:.1%}",
                f"{fill:.1%}" if name == "packed" else "-",
                f"{summary.max_tokens:,}",
                f"{summary.micro_batches:,}",
                f"{math.ceil(summary.micro_batches / accumulation):,}",
            )
        )
    return rows


def planned_memory(
    summary: DataSummary, flags: CheckFlags, vision_config: CustomVisionConfig | None
) -> list[tuple[str, ...]]:
    """Return a table of the estimated GPU memory of one process, from a model without weights."""
    model = build_model(flags.model, flags.training, vision_config, without_weights=True)
    return memory_table(model, summary, flags.training, flags.sharding)


def draw_histogram(lengths: np.ndarray, limit: int) -> bytes:
    """Return a PNG with a histogram of the tokens of records and the limit; needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    edges = histogram_edges(lengths)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(lengths, bins=edges)
    if limit <= edges[-1]:
        axes.axvline(limit, color="tab:red", linestyle="--", label=f"model_max_length {limit:,}")
        axes.legend()
        note = f"{int((lengths > limit).sum()):,} over the limit"
    else:
        # A line at a distant limit would squeeze the bars at the left edge.
        note = f"none over model_max_length {limit:,}"
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="tokens of a record", ylabel="records", title=f"{len(lengths):,} records, {note}")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def histogram_edges(lengths: np.ndarray) -> np.ndarray:
    """Return the edges of bins over the lengths (n,), each with the same number of integers."""
    low, high = int(lengths.min()), int(lengths.max())
    width = math.ceil((high - low + 1) / _MAX_BINS)
    count = math.ceil((high - low + 1) / width)
    return low - 0.5 + width * np.arange(count + 1)

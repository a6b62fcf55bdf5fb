"""Report what the pre-flight check found: problems and their locations, and tables of lengths, batches and memory."""

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
from qwenvl.train.memory import BatchShape, estimate_memory
from qwenvl.train.plan import micro_batches_per_step
from qwenvl.vision import CustomVisionConfig

_PERCENTILES = (50, 95, 99)
_MOST_BINS = 80


@dataclass(frozen=True)
class Problem:
    """One row of problems.jsonl: `row` is the place in the file ("row 12", "line 13", "row 3 item 0")."""

    file: str
    row: str
    check: str
    reason: str
    path: str | None


class ProblemList:
    """Collects the problems of all checks; a record with one is no longer sound."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._unsound: set[str] = set()

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, check: str, samples: Iterable[BadSample]) -> None:
        """Note what a check found; the same problem of the same record counts once."""
        for bad in samples:
            # People know a video that is given as frames by these, not by the list that is kept of them.
            path = next(iter(frame_paths(bad.path)), bad.path) if bad.path and is_frame_list(bad.path) else bad.path
            self._problems[Problem(bad.source, bad.location, check, bad.reason, path)] = None
            self._unsound.add(bad.where)

    def sound(self, records: Iterable[Record]) -> list[Record]:
        """Return the records without a problem so far."""
        return [record for record in records if record.where not in self._unsound]

    def is_sound(self, record: Record) -> bool:
        """Whether no check has found a problem with this record so far."""
        return record.where not in self._unsound

    def rows(self) -> list[dict[str, Any]]:
        """Return all problems in the order of the files."""
        ordered = sorted(self._problems, key=lambda each: (each.file, [int(n) for n in re.findall(r"\d+", each.row)]))
        return [asdict(problem) for problem in ordered]

    def by_check(self) -> list[tuple[str, int]]:
        """Return how many problems each check found."""
        return sorted(Counter(problem.check for problem in self._problems).items())


@dataclass(frozen=True)
class SoundData:
    """The training records that no check objects to, in one order: records (n), counts (n,), and packs of the file."""

    records: Sequence[Record]
    counts: TokenCounts
    packs: list[list[int]] | None


def length_rows(lengths: np.ndarray, limit: int) -> list[tuple[str, Any]]:
    """Describe the tokens of the readable records, (n,), those over the limit among them."""
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


def summarize_batches(data: SoundData, flags: CheckFlags, encoder: RecordEncoder) -> dict[str, DataSummary]:
    """Plan one epoch each of padded, flattened and packed batches, as training would with the flags given."""
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
    """Compare the three kinds of batches, with the mark * at the one that the flags choose."""
    rows = [("batches", "padding", "packs full to", "most tokens", "batches per epoch", "steps per epoch")]
    for name, summary in summaries.items():
        accumulation = micro_batches_per_step(summary.num_samples / summary.micro_batches, flags.training)
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


def memory_table(
    summary: DataSummary, flags: CheckFlags, vision_config: CustomVisionConfig | None
) -> list[tuple[str, ...]]:
    """Estimate the GPU memory of one process of the run, from a model without weights."""
    model = build_model(flags.model, flags.training, vision_config, without_weights=True)
    memory = estimate_memory(
        model,
        BatchShape(summary.max_tokens, summary.most_supervised, summary.most_patches),
        gradient_checkpointing=bool(flags.training.activation_checkpointing),
        sharding=flags.sharding,
    )
    return [("GPU memory of a process", "GiB"), *((name, f"{gib:.2f}") for name, gib in memory.items())]


def draw_histogram(lengths: np.ndarray, limit: int) -> bytes:
    """Return a PNG with how many records have how many tokens, and where the limit is; needs matplotlib."""
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
        # Drawn in, a distant limit would press the records together at the left edge.
        note = f"none over model_max_length {limit:,}"
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel="tokens of a record", ylabel="records", title=f"{len(lengths):,} records, {note}")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def histogram_edges(lengths: np.ndarray) -> np.ndarray:
    """Return the edges of equal bins over the lengths (n,), each holding the same number of whole numbers."""
    low, high = int(lengths.min()), int(lengths.max())
    width = math.ceil((high - low + 1) / _MOST_BINS)
    count = math.ceil((high - low + 1) / width)
    return low - 0.5 + width * np.arange(count + 1)

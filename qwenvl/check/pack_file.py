"""Pack an annotation file before training: write a nested list whose inner lists are packs of rows."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl.check.raw_rows import rebase_row
from qwenvl.data import DatasetSpec, data_list, load_datasets
from qwenvl.data.annotations import BadSampleTracker, Record
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, TokenCounts, find_usable, read_media_sizes
from qwenvl.data.packing import plan_packs
from qwenvl.data.rows import stream_rows
from qwenvl.data.thinking_turns import split_thinking_turns
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.train.prepare import prepare_base
from qwenvl.utils.files import WholeFiles, refuse_inputs
from qwenvl.utils.json_text import JsonListWriter, encoded_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackOptions:
    """How a file is packed.

    Attributes:
        model_max_length: The most tokens of a pack.
        seed: The seed of the order among samples of equal length.
        out: The output file; None for a file in the folder of the annotation file.
        overwrite: Whether to replace an existing output file.
    """

    model_max_length: int
    seed: int = 42
    out: str | None = None
    overwrite: bool = False


def pack_dataset(model_args: ModelArguments, data_args: DataArguments, options: PackOptions) -> list[tuple[str, Any]]:
    """Write the packed file, with the token counts that training with these flags has.

    Returns the rows of a summary as (name, value); raises `UserError` for data that training would refuse.
    """
    spec = _one_dataset(data_args.dataset_use)
    output = Path(options.out) if options.out else _default_output(spec.annotation_path, options.model_max_length)
    refuse_inputs([output], [spec.annotation_path])
    tracker = BadSampleTracker(data_args.bad_sample_policy, data_args.max_bad_samples)
    annotations = load_datasets(data_args.dataset_use, options.seed, tracker, data_args.media_cache_dir)
    if annotations.packs is not None:
        raise UserError(
            f"{spec.annotation_path} is already packed (a nested list); give the list that it was made from"
        )
    encoder = RecordEncoder(prepare_base(model_args, data_args).processor, data_args.max_image_pixels)
    annotations, message = split_thinking_turns(annotations, encoder, data_args.thinking_turns)
    if message is not None:
        logger.info("%s: %s", data_args.dataset_use, message)
    records, counts = count_rows(annotations.records, encoder, data_args)
    kept = find_usable(records, counts, options.model_max_length, tracker)
    if not len(kept):
        raise UserError(f"{spec.annotation_path}: none of the {len(records)} records is usable")
    lengths = counts.total[kept]
    packs = [kept[pack] for pack in plan_packs(lengths, options.model_max_length, options.seed)]
    _write_packs(output, packs, records, spec.data_path, options.overwrite)
    return [
        ("records", len(kept)),
        ("records left out", tracker.count),
        ("tokens", int(lengths.sum())),
        ("tokens of a record, most", int(lengths.max())),
        (f"packs of at most {options.model_max_length}", len(packs)),
        ("packs are full to", f"{lengths.sum() / (len(packs) * options.model_max_length):.2%}"),
        ("written to", output),
    ]


def count_rows(
    records: list[Record], encoder: RecordEncoder, data_args: DataArguments
) -> tuple[list[Record], TokenCounts]:
    """Count the tokens of rows; return the first sample of each row, and the counts of all samples of the row."""
    sizes = read_media_sizes(records, data_args.media_cache_dir, data_args.max_image_pixels)
    counts = TokenCounter(encoder).count(records, sizes)
    first = np.array(
        [index for index, record in enumerate(records) if not index or record.row != records[index - 1].row]
    )
    total = np.add.reduceat(counts.total, first)
    bad = {int(np.searchsorted(first, index, "right")) - 1: reason for index, reason in counts.bad.items()}
    zeros = np.zeros_like(total)
    return [records[index] for index in first], TokenCounts(total, zeros, zeros.copy(), bad)


def _one_dataset(dataset_use: str) -> DatasetSpec:
    specs = data_list(dataset_use)
    if len(specs) > 1:
        raise UserError(f"{dataset_use} names {len(specs)} datasets; pack them one by one")
    return specs[0]


def _default_output(annotation_path: str, capacity: int) -> Path:
    path = Path(annotation_path)
    return path.with_name(f"{path.stem}_packed_{capacity}.json")


def _write_packs(output: Path, packs: list[np.ndarray], records: list[Record], root: str, overwrite: bool) -> None:
    """Write the rows of each pack as in the annotation file, with media paths valid from the folder of the output."""
    rows = {row.index: row.value for row in stream_rows(records[0].source, lambda location, reason: None)}
    inputs = (path for record in records for path in (record.source, *record.images, *record.videos))
    with WholeFiles(output.parent, [output.name], overwrite, inputs) as streams:
        writer = JsonListWriter(streams[output.name])
        for pack in packs:
            chosen = [records[index] for index in pack]
            items = [rebase_row(rows[each.row], each, [root], str(output.parent)) for each in chosen]
            writer.write(encoded_json(items))
        writer.close()

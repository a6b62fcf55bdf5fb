"""Owns packing ahead of training: an annotation file in, a nested list out, each inner list one pack of samples."""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl.check.raw_rows import moved_row
from qwenvl.data import DatasetSpec, data_list, load_datasets
from qwenvl.data.annotations import BadSampleLedger, Record
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, TokenCounts, read_media_sizes, usable_places
from qwenvl.data.packing import plan_packs
from qwenvl.data.pixel_limits import set_pixel_limits
from qwenvl.data.rows import read_rows
from qwenvl.data.thinking_turns import split_thinking_turns
from qwenvl.errors import UserError
from qwenvl.model.build import load_processor
from qwenvl.utils.cli import ToolParser, positive_int, print_summary
from qwenvl.utils.files import WholeFiles, refuse_inputs
from qwenvl.utils.json_text import JsonListWriter, encoded_json
from qwenvl.utils.logs import configure_logging

logger = logging.getLogger(__name__)

# What decides how many tokens a sample has, with the same defaults as in training.
_SHARED_FLAGS = (
    ("max_pixels", int),
    ("min_pixels", int),
    ("video_fps", float),
    ("video_max_frames", int),
    ("video_min_frames", int),
    ("video_max_pixels", int),
    ("video_min_pixels", int),
    ("max_image_megapixels", int),
    ("bad_sample_policy", str),
    ("max_bad_samples", int),
    ("media_cache_dir", str),
    ("thinking_turns", str),
)


def pack_dataset(options: argparse.Namespace, max_image_pixels: int) -> list[tuple[str, Any]]:
    """Write the packed file and return what is worth telling, as (name, value)."""
    spec = _one_dataset(options.dataset_use)
    output = Path(options.out) if options.out else _default_output(spec.annotation_path, options.model_max_length)
    refuse_inputs([output], [spec.annotation_path])
    ledger = BadSampleLedger(options.bad_sample_policy, options.max_bad_samples)
    annotations = load_datasets(options.dataset_use, options.seed, ledger, options.media_cache_dir)
    if annotations.packs is not None:
        raise UserError(f"{spec.annotation_path} is a nested list, packed already; give the list that it was made from")
    processor = load_processor(options.model_name_or_path)
    set_pixel_limits(processor, options)
    encoder = RecordEncoder(processor, max_image_pixels)
    annotations, told = split_thinking_turns(annotations, encoder, options.thinking_turns)
    if told is not None:
        logger.info("%s: %s", options.dataset_use, told)
    sizes = read_media_sizes(annotations.records, options.media_cache_dir, max_image_pixels)
    counts = TokenCounter(encoder).count(annotations.records, sizes)
    # A pack holds whole rows: the samples of one row are counted together.
    first = _first_samples(annotations.records)
    total = np.add.reduceat(counts.total, first)
    bad = {int(np.searchsorted(first, place, "right")) - 1: why for place, why in counts.bad.items()}
    records = [annotations.records[place] for place in first]
    counts = TokenCounts(total, np.zeros_like(total), np.zeros_like(total), bad)
    kept = usable_places(records, counts, options.model_max_length, ledger)
    if not len(kept):
        raise UserError(f"{spec.annotation_path}: none of the {len(records)} records is usable")
    lengths = counts.total[kept]
    packs = [kept[pack] for pack in plan_packs(lengths, options.model_max_length, options.seed)]
    _write_packs(output, packs, records, spec.data_path, options.overwrite)
    return [
        ("records", len(kept)),
        ("records left out", ledger.count),
        ("tokens", int(lengths.sum())),
        ("tokens of a record, most", int(lengths.max())),
        (f"packs of at most {options.model_max_length}", len(packs)),
        ("packs are full to", f"{lengths.sum() / (len(packs) * options.model_max_length):.2%}"),
        ("written to", output),
    ]


def _first_samples(records: list[Record]) -> np.ndarray:
    """Return where the samples of each row begin, (rows,)."""
    return np.array(
        [place for place, record in enumerate(records) if not place or record.row != records[place - 1].row]
    )


def _one_dataset(dataset_use: str) -> DatasetSpec:
    specs = data_list(dataset_use)
    if len(specs) > 1:
        raise UserError(f"{dataset_use} names {len(specs)} data sets; pack them one by one")
    return specs[0]


def _default_output(annotation_path: str, capacity: int) -> Path:
    path = Path(annotation_path)
    return path.with_name(f"{path.stem}_packed_{capacity}.json")


def _write_packs(output: Path, packs: list[np.ndarray], records: list[Record], root: str, overwrite: bool) -> None:
    """Write the rows of each pack as they stand in the annotation file, their media paths as found from the output."""
    rows = {row.index: row.value for row in read_rows(records[0].source, lambda place, reason: None)}
    inputs = (path for record in records for path in (record.source, *record.images, *record.videos))
    with WholeFiles(output.parent, [output.name], overwrite, inputs) as streams:
        writer = JsonListWriter(streams[output.name])
        for pack in packs:
            chosen = [records[place] for place in pack]
            items = [moved_row(rows[each.row], each, [root], str(output.parent)) for each in chosen]
            writer.write(encoded_json(items))
        writer.close()


def main(argv: list[str] | None = None) -> int:
    """Pack one data set and print how full the packs are."""
    parser = ToolParser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="the model that will be trained, for its processor")
    parser.add_argument("--dataset_use", required=True, help="one data set: a registered name, or a .json/.jsonl file")
    parser.add_argument("--model_max_length", type=positive_int, required=True, help="most tokens of a pack")
    parser.add_argument(
        "--out", default=None, help="file to write, which can be trained on where it is (default: beside the old one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--seed", type=int, default=42, help="seed of the order among equally long samples")
    fields = {field.name: field for field in dataclasses.fields(DataArguments)}
    for name, kind in _SHARED_FLAGS:
        field = fields[name]
        parser.add_argument(f"--{name}", type=kind, default=field.default, help=field.metadata["help"])
    options = parser.parse_args(argv)
    # What training tells, too: keys that are not read, thoughts that make several samples of a record.
    configure_logging()
    # The same rules between these flags as in training.
    data_args = DataArguments(**{name: getattr(options, name) for name, _ in _SHARED_FLAGS})
    print_summary("Packed", pack_dataset(options, data_args.max_image_pixels))
    return 0

"""Check every record of the datasets of a run, and report what the run would do with them."""

import importlib.util
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

import numpy as np

from qwenvl.check.arguments import CheckFlags
from qwenvl.check.duplicates import files_of, find_duplicates, media_ids, media_of
from qwenvl.check.raw_rows import iter_rows, write_valid_rows
from qwenvl.check.records import find_outside, find_swapped_turns, find_undecodable, find_wrong_boxes
from qwenvl.check.report import (
    ProblemList,
    ValidData,
    batch_table,
    chosen_batches,
    draw_histogram,
    length_rows,
    planned_memory,
    summarize_batches,
)
from qwenvl.check.splits import find_leaks, find_shared_subjects
from qwenvl.data import DatasetSpec, data_list, load_datasets
from qwenvl.data.annotations import Annotations, BadSample, BadSampleTracker, Record
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, TokenCounts, find_usable, read_media_sizes
from qwenvl.data.packing import renumber_packs
from qwenvl.data.table_rows import is_table
from qwenvl.data.thinking_turns import count_thoughtless_answers, describe_thoughtless_answers, split_thinking_turns
from qwenvl.errors import UserError
from qwenvl.train.prepare import BasePlan, prepare_base
from qwenvl.utils.files import WholeFiles, refuse_inputs
from qwenvl.utils.tables import format_summary, format_table
from qwenvl.vision import CustomVisionConfig

logger = logging.getLogger(__name__)

PROBLEMS, HISTOGRAM = "problems.jsonl", "token_lengths.png"


class _Collector(BadSampleTracker):
    """A tracker that keeps every bad sample and never raises."""

    def report(self, bad: BadSample) -> None:
        self.samples.append(bad)


@dataclass(frozen=True)
class _Split:
    """The training or the evaluation data as read; `clean_files` maps annotation files to names in the output."""

    clean_files: dict[str, str]
    annotations: Annotations
    counts: TokenCounts

    @property
    def records(self) -> list[Record]:
        return self.annotations.records


class DataCheck:
    """Checks the data of one run and collects `problems`."""

    def __init__(self, flags: CheckFlags) -> None:
        self.flags = flags
        self.specs = data_list(flags.data.dataset_use)
        self.eval_specs = data_list(flags.data.eval_dataset_use) if flags.data.eval_dataset_use else []
        self.problems = ProblemList()
        for spec in [*self.specs, *self.eval_specs]:
            # Reading would report it too, but only after the model's files are downloaded.
            if not is_table(spec.annotation_path) and not os.path.exists(spec.annotation_path):
                raise UserError(f"{spec.annotation_path}: no such annotation file; correct the path")

    @cached_property
    def _base(self) -> BasePlan:
        return prepare_base(self.flags.model, self.flags.data, self.flags.training.cache_dir)

    @cached_property
    def encoder(self) -> RecordEncoder:
        """The record encoder that training would use."""
        return RecordEncoder(self._base.processor, self.flags.data.max_image_pixels)

    @property
    def vision_config(self) -> CustomVisionConfig | None:
        """The configuration of a custom vision tower; None without one."""
        return self._base.vision_config

    def run(self) -> list[_Split]:
        """Run every check; return the training data and, if there is any, the evaluation data."""
        video_processor = self.encoder.processor.video_processor
        splits = [self._split(self.flags.data.dataset_use, self.specs, "clean")]
        if self.eval_specs:
            splits.append(self._split(self.flags.data.eval_dataset_use, self.eval_specs, "eval_clean"))
        options = self.flags.check
        for split in splits:
            self.problems.add("turns", find_swapped_turns(split.records))
            if options.decode == "full":
                valid = self.problems.valid(split.records)
                self.problems.add(
                    "file", find_undecodable(valid, video_processor, options.workers, self.flags.data.max_image_pixels)
                )
        self._compare(splits)
        self._check_packs(splits[0])
        return splits

    def _split(self, dataset_use: str, specs: Sequence[DatasetSpec], name: str) -> _Split:
        logger.info("reading %s", dataset_use)
        tracker = _Collector()
        annotations = _load(dataset_use, self.flags, tracker)
        self._add_by_path("record", tracker)
        annotations, message = split_thinking_turns(annotations, self.encoder, self.flags.data.thinking_turns)
        if message is not None:
            logger.info("%s: %s", dataset_use, message)
        records = annotations.records
        if self.encoder.opens_thoughts:
            num_answers, num_thoughtless = count_thoughtless_answers(records)
            if num_thoughtless:
                logger.warning("%s: %s", dataset_use, describe_thoughtless_answers(num_answers, num_thoughtless))
        if not self.flags.check.allow_outside:
            for spec in dict.fromkeys((spec.annotation_path, spec.data_path) for spec in specs):
                own = [record for record in records if record.source == spec[0]]
                self.problems.add("outside", find_outside(own, spec[1]))
        logger.info("reading the headers of the media of %d records and counting tokens", len(records))
        sizes = read_media_sizes(records, self.flags.data.media_cache_dir, self.flags.data.max_image_pixels)
        counts = TokenCounter(self.encoder).count(records, sizes)
        # Text that training refuses: special tokens, and words that the chat template drops.
        self.problems.add("text", [bad for bad in counts.bad.values() if bad.path is None])
        tracker = _Collector()
        find_usable(records, counts, self.flags.training.model_max_length, tracker)
        tracker.samples = [bad for bad in tracker.samples if bad not in counts.bad.values() or bad.path is not None]
        self._add_by_path("length", tracker)
        if self.flags.check.box_space != "none":
            self.problems.add("box", find_wrong_boxes(records, sizes, self.flags.check.box_space))
        files = list(dict.fromkeys(spec.annotation_path for spec in specs))
        return _Split(_clean_names(files, name), annotations, counts)

    def _add_by_path(self, check: str, tracker: BadSampleTracker) -> None:
        """Add bad samples, as "file" if they are about a file."""
        for bad in tracker.samples:
            self.problems.add(check if bad.path is None else "file", [bad])

    def _compare(self, splits: Sequence[_Split]) -> None:
        """Find duplicate records, and media that training and evaluation share."""
        options = self.flags.check
        if options.duplicates == "none" and len(splits) == 1:
            return
        logger.info("comparing records and media")
        records = [record for split in splits for record in split.records]
        ids = media_ids((path for record in records for path in media_of(record)), options.same_picture == "content")
        if options.duplicates != "none":
            for split in splits:
                valid = self.problems.valid(_last_samples(split.records))
                self.problems.add("duplicate", find_duplicates(valid, ids, options.duplicates))
        for held_out in splits[1:]:
            valid = self.problems.valid(splits[0].records)
            self.problems.add("leak", find_leaks(valid, held_out.records, ids))
            valid = self.problems.valid(splits[0].records)
            self.problems.add("leak", find_shared_subjects(valid, held_out.records))

    def _check_packs(self, split: _Split) -> None:
        packs = split.annotations.packs
        if packs is None:
            return
        limit = self.flags.training.model_max_length
        if not self.flags.data.data_packing:
            raise UserError(f"{split.records[0].source} is already packed (a nested list): set --data_packing True")
        for pack in packs:
            tokens = split.counts.total[pack].sum()
            if tokens > limit and len(pack) > 1:
                reason = f"its pack has {tokens} tokens, more than --model_max_length {limit}: pack the file again"
                self.problems.add("length", [BadSample.of(split.records[index], None, reason) for index in pack])

    def valid_data(self, split: _Split) -> ValidData:
        """Return the records without a problem, with their counts, and their packs if the file is packed."""
        valid = [index for index, record in enumerate(split.records) if self.problems.is_valid(record)]
        packs = split.annotations.packs
        if packs is not None:
            packs = renumber_packs(packs, np.array(valid, dtype=np.int64))
        records = [split.records[index] for index in valid]
        return ValidData(records, split.counts.of(np.array(valid, dtype=np.int64)), packs)


def _last_samples(records: Iterable[Record]) -> list[Record]:
    """Return the last sample of each row, which has all turns of the row."""
    return [*{record.full_location: record for record in records}.values()]


def _load(dataset_use: str, flags: CheckFlags, tracker: BadSampleTracker) -> Annotations:
    """Read the datasets; one without a usable record is left out, with all its rows in `tracker`."""
    attempt = _Collector()
    try:
        annotations = load_datasets(dataset_use, flags.seed, attempt, flags.data.media_cache_dir)
    except UserError:
        if not attempt.count:
            raise
        usable = [entry for entry in dataset_use.split(",") if entry.strip() and _has_records(entry, flags, tracker)]
        if not usable:
            return Annotations([])
        return load_datasets(",".join(usable), flags.seed, _Collector(), flags.data.media_cache_dir)
    tracker.samples += attempt.samples
    return annotations


def _has_records(entry: str, flags: CheckFlags, tracker: BadSampleTracker) -> bool:
    attempt = _Collector()
    try:
        load_datasets(entry, flags.seed, attempt, flags.data.media_cache_dir)
    except UserError as error:
        if not attempt.count:
            raise
        logger.warning("%s", error)
        return False
    finally:
        tracker.samples += attempt.samples
    return True


def _clean_names(files: Sequence[str], name: str) -> dict[str, str]:
    """Return the name of each annotation file's clean copy: clean.json for one, clean_NAME.json for several."""
    if len(files) == 1:
        return {files[0]: f"{name}.json"}
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f"{number}_{stem}" for number, stem in enumerate(stems, 1)]
    return {file: f"{name}_{stem}.json" for file, stem in zip(files, stems, strict=True)}


def output_names(specs: Sequence[DatasetSpec], eval_specs: Sequence[DatasetSpec]) -> list[str]:
    """Return the names of the files that a check writes."""
    names = [PROBLEMS]
    for part, name in ((specs, "clean"), (eval_specs, "eval_clean")):
        names += _clean_names(list(dict.fromkeys(spec.annotation_path for spec in part)), name).values() if part else []
    return names + [HISTOGRAM] if importlib.util.find_spec("matplotlib") else names


def _write_clean(
    split: _Split, problems: ProblemList, specs: Sequence[DatasetSpec], out: Path, streams: dict[str, TextIO]
) -> Iterator[tuple[str, int]]:
    """Copy the valid rows of each file to `out`; yield the name and number of records of each copy."""
    valid: dict[str, dict[str, Record]] = {source: {} for source in split.clean_files}
    for record in problems.valid(split.records):
        valid[record.source][record.location or ""] = record
    for source, name in split.clean_files.items():
        rows = iter_rows(source) if valid[source] else iter(())
        roots = dict.fromkeys(spec.data_path for spec in specs if spec.annotation_path == source)
        yield name, write_valid_rows(streams[name], rows, valid[source], roots, str(out))


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        check: The check, with its problems.
        training: The training data as read.
        written: The name of each clean file and the number of its records.
        lengths: Tokens of each readable training record, (n,).
        has_histogram: Whether the histogram was written.
    """

    check: DataCheck
    training: _Split
    written: Sequence[tuple[str, int]]
    lengths: np.ndarray
    has_histogram: bool

    @property
    def num_problems(self) -> int:
        """The number of problems of all checks."""
        return len(self.check.problems)

    def sections(self) -> Iterator[str]:
        """Yield the parts of the report; the last ones take longer, because they plan an epoch and build a model."""
        flags, problems = self.check.flags, self.check.problems
        rows = [("problems", len(problems)), *((f"  {name}", count) for name, count in problems.by_check())]
        rows += [(f"records in {name}", count) for name, count in self.written]
        rows += length_rows(self.lengths, flags.training.model_max_length) if len(self.lengths) else []
        yield format_summary(f"Checked {flags.data.dataset_use} -> {Path(flags.check.out)}", rows)
        if not self.has_histogram:
            yield f"no {HISTOGRAM}: matplotlib is not installed (pip install matplotlib)"
        yield from _plan_sections(self.check, self.training)


def _plan_sections(check: DataCheck, split: _Split) -> Iterator[str]:
    """Yield the parts of the report about training on the valid records."""
    data, flags = check.valid_data(split), check.flags
    if not data.records:
        yield "no record is left to train on"
        return
    logger.info("planning an epoch")
    summaries = summarize_batches(data, flags, check.encoder)
    chosen = summaries[chosen_batches(flags)]
    supervised = f"{chosen.num_supervised:,} ({chosen.num_supervised / chosen.num_tokens:.1%})"
    yield format_summary(
        "Without the problems",
        [("records", chosen.num_samples), ("tokens", chosen.num_tokens), ("supervised tokens", supervised)],
    )
    yield format_table(batch_table(summaries, flags))
    yield f"(* what the flags choose; {flags.sharding.processes} process(es))"
    if flags.model.tune_mm_llm or flags.model.tune_mm_mlp or flags.model.tune_mm_vision:
        yield format_table(planned_memory(chosen, flags, check.vision_config))
    else:
        yield "GPU memory: no estimate, because no --tune_mm_* flag is set"


def check_data(flags: CheckFlags) -> CheckResult:
    """Check the data of a run and write the problems, the clean files and the histogram into `--out`.

    Raises:
        UserError: For files that cannot be read at all, or outputs that would replace other files.
    """
    check = DataCheck(flags)
    out = Path(flags.check.out)
    names = output_names(check.specs, check.eval_specs)
    originals = [spec.annotation_path for spec in [*check.specs, *check.eval_specs]]
    with WholeFiles(out, names, flags.check.overwrite, originals) as streams:
        splits = check.run()
        media = (path for split in splits for record in split.records for path in files_of(record))
        refuse_inputs([out / name for name in names], media)
        for row in check.problems.rows():
            streams[PROBLEMS].write(json.dumps(row) + "\n")
        parts = list(zip(splits, (check.specs, check.eval_specs), strict=False))
        written = [each for split, specs in parts for each in _write_clean(split, check.problems, specs, out, streams)]
        lengths = np.delete(splits[0].counts.total, list(splits[0].counts.bad))
        if HISTOGRAM in streams and len(lengths):
            streams[HISTOGRAM].buffer.write(draw_histogram(lengths, flags.training.model_max_length))
    return CheckResult(check, splits[0], written, lengths, HISTOGRAM in names)

"""Check every record of a run's datasets before training, and report what the run would do with them."""

import importlib.util
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from qwenvl.check.arguments import CheckFlags
from qwenvl.check.duplicates import files_of, find_duplicates, media_of, picture_ids
from qwenvl.check.raw_rows import iter_rows, write_sound_rows
from qwenvl.check.records import find_outside, find_swapped_turns, find_undecodable, find_wrong_boxes
from qwenvl.check.report import (
    ProblemList,
    SoundData,
    batch_table,
    chosen_batches,
    draw_histogram,
    length_rows,
    memory_table,
    summarize_batches,
)
from qwenvl.check.splits import find_leaks, find_shared_subjects
from qwenvl.data import DatasetSpec, data_list, load_datasets
from qwenvl.data.annotations import Annotations, BadSample, BadSampleTracker, Record
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.lengths import TokenCounter, TokenCounts, find_usable, read_media_sizes
from qwenvl.data.packing import renumber_packs
from qwenvl.data.thinking_turns import count_thoughtless_answers, describe_thoughtless_answers, split_thinking_turns
from qwenvl.errors import UserError
from qwenvl.train.param_groups import format_table
from qwenvl.train.prepare import prepare_base
from qwenvl.utils.cli import format_summary
from qwenvl.utils.files import WholeFiles, refuse_inputs
from qwenvl.vision import CustomVisionConfig

logger = logging.getLogger(__name__)

PROBLEMS, HISTOGRAM = "problems.jsonl", "token_lengths.png"


class _Collector(BadSampleTracker):
    """Keeps every bad sample and ends nothing."""

    def report(self, bad: BadSample) -> None:
        self.samples.append(bad)


@dataclass(frozen=True)
class _Split:
    """One of the two parts that a run names, as read: `clean_files` are the names of its files in the output."""

    clean_files: dict[str, str]
    annotations: Annotations
    counts: TokenCounts

    @property
    def records(self) -> list[Record]:
        return self.annotations.records


class DataCheck:
    """Checks the data of one run; `problems` fills as the checks go on."""

    def __init__(self, flags: CheckFlags) -> None:
        self.flags = flags
        self.specs = data_list(flags.data.dataset_use)
        self.eval_specs = data_list(flags.data.eval_dataset_use) if flags.data.eval_dataset_use else []
        self.problems = ProblemList()
        self.encoder, self.vision_config = _build_encoder(flags)

    def run(self) -> list[_Split]:
        """Make every check; return the training data and, where there is some, the evaluation data."""
        splits = [self._split(self.flags.data.dataset_use, self.specs, "clean")]
        if self.eval_specs:
            splits.append(self._split(self.flags.data.eval_dataset_use, self.eval_specs, "eval_clean"))
        options = self.flags.check
        video_processor = self.encoder.processor.video_processor
        for split in splits:
            self.problems.add("turns", find_swapped_turns(split.records))
            if options.decode == "full":
                sound = self.problems.sound(split.records)
                self.problems.add(
                    "file", find_undecodable(sound, video_processor, options.workers, self.flags.data.max_image_pixels)
                )
        self._compare(splits)
        self._check_packs(splits[0])
        return splits

    def _split(self, dataset_use: str, specs: Sequence[DatasetSpec], name: str) -> _Split:
        logger.info("reading %s", dataset_use)
        ledger = _Collector()
        annotations = _load(dataset_use, self.flags, ledger)
        self._add_by_path("record", ledger)
        annotations, told = split_thinking_turns(annotations, self.encoder, self.flags.data.thinking_turns)
        if told is not None:
            logger.info("%s: %s", dataset_use, told)
        records = annotations.records
        if self.encoder.opens_thoughts:
            num_answers, num_thoughtless = count_thoughtless_answers(records)
            if num_thoughtless:
                logger.warning("%s: %s", dataset_use, describe_thoughtless_answers(num_answers, num_thoughtless))
        if not self.flags.check.allow_outside:
            for spec in dict.fromkeys((spec.annotation_path, spec.data_path) for spec in specs):
                own = [record for record in records if record.source == spec[0]]
                self.problems.add("outside", find_outside(own, spec[1]))
        logger.info("looking at the headers of the media of %d records, and counting tokens", len(records))
        sizes = read_media_sizes(records, self.flags.data.media_cache_dir, self.flags.data.max_image_pixels)
        counts = TokenCounter(self.encoder).count(records, sizes)
        # What training refuses for its text: special tokens, and words that the chat template leaves out.
        self.problems.add("text", [bad for bad in counts.bad.values() if bad.path is None])
        ledger = _Collector()
        find_usable(records, counts, self.flags.training.model_max_length, ledger)
        ledger.samples = [bad for bad in ledger.samples if bad not in counts.bad.values() or bad.path is not None]
        self._add_by_path("length", ledger)
        if self.flags.check.box_space != "none":
            self.problems.add("box", find_wrong_boxes(records, sizes, self.flags.check.box_space))
        files = list(dict.fromkeys(spec.annotation_path for spec in specs))
        return _Split(_clean_names(files, name), annotations, counts)

    def _add_by_path(self, check: str, ledger: BadSampleTracker) -> None:
        """Note bad samples under "file" where they are about one."""
        for bad in ledger.samples:
            self.problems.add(check if bad.path is None else "file", [bad])

    def _compare(self, splits: Sequence[_Split]) -> None:
        """Look for records and pictures that are there twice."""
        options = self.flags.check
        if options.duplicates == "none" and len(splits) == 1:
            return
        logger.info("looking for what is there twice")
        records = [record for split in splits for record in split.records]
        ids = picture_ids((path for record in records for path in media_of(record)), options.same_picture == "content")
        if options.duplicates != "none":
            for split in splits:
                sound = self.problems.sound(_whole(split.records))
                self.problems.add("duplicate", find_duplicates(sound, ids, options.duplicates))
        for held_out in splits[1:]:
            sound = self.problems.sound(splits[0].records)
            self.problems.add("leak", find_leaks(sound, held_out.records, ids))
            sound = self.problems.sound(splits[0].records)
            self.problems.add("leak", find_shared_subjects(sound, held_out.records))

    def _check_packs(self, split: _Split) -> None:
        packs = split.annotations.packs
        if packs is None:
            return
        limit = self.flags.training.model_max_length
        if not self.flags.data.data_packing:
            raise UserError(f"{split.records[0].source} is a nested list, packed already: set --data_packing True")
        for pack in packs:
            tokens = split.counts.total[pack].sum()
            if tokens > limit and len(pack) > 1:
                reason = f"its pack has {tokens} tokens, more than --model_max_length {limit}: pack the file again"
                self.problems.add("length", [BadSample.of(split.records[index], None, reason) for index in pack])

    def sound_data(self, split: _Split) -> SoundData:
        """Return the records without a problem, their counts, and their packs where the file has some."""
        sound = [place for place, record in enumerate(split.records) if self.problems.is_sound(record)]
        packs = split.annotations.packs
        if packs is not None:
            packs = renumber_packs(packs, np.array(sound, dtype=np.int64))
        records = [split.records[place] for place in sound]
        return SoundData(records, split.counts.of(np.array(sound, dtype=np.int64)), packs)


def _whole(records: Iterable[Record]) -> list[Record]:
    """Return each record once where it became several samples, of which the last has all its turns."""
    return [*{record.where: record for record in records}.values()]


def _build_encoder(flags: CheckFlags) -> tuple[RecordEncoder, CustomVisionConfig | None]:
    """Return the encoder of records that training would use, and the configuration of a custom tower."""
    base = prepare_base(flags.model, flags.data, flags.training.cache_dir)
    return RecordEncoder(base.processor, flags.data.max_image_pixels), base.vision_config


def _load(dataset_use: str, flags: CheckFlags, ledger: BadSampleTracker) -> Annotations:
    """Read the datasets; one without a single usable record is left out, with all its rows in the ledger."""
    attempt = _Collector()
    try:
        annotations = load_datasets(dataset_use, flags.seed, attempt, flags.data.media_cache_dir)
    except UserError:
        if not attempt.count:
            raise
        usable = [entry for entry in dataset_use.split(",") if entry.strip() and _has_records(entry, flags, ledger)]
        if not usable:
            return Annotations([])
        return load_datasets(",".join(usable), flags.seed, _Collector(), flags.data.media_cache_dir)
    ledger.samples += attempt.samples
    return annotations


def _has_records(entry: str, flags: CheckFlags, ledger: BadSampleTracker) -> bool:
    attempt = _Collector()
    try:
        load_datasets(entry, flags.seed, attempt, flags.data.media_cache_dir)
    except UserError as error:
        if not attempt.count:
            raise
        logger.warning("%s", error)
        return False
    finally:
        ledger.samples += attempt.samples
    return True


def _clean_names(files: Sequence[str], name: str) -> dict[str, str]:
    """Return what each annotation file's clean copy is called: clean.json for one, clean_NAME.json for several."""
    if len(files) == 1:
        return {files[0]: f"{name}.json"}
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f"{number}_{stem}" for number, stem in enumerate(stems, 1)]
    return {file: f"{name}_{stem}.json" for file, stem in zip(files, stems, strict=True)}


def output_names(specs: Sequence[DatasetSpec], eval_specs: Sequence[DatasetSpec]) -> list[str]:
    """Return the names of all files that a check writes."""
    names = [PROBLEMS]
    for part, name in ((specs, "clean"), (eval_specs, "eval_clean")):
        names += _clean_names(list(dict.fromkeys(spec.annotation_path for spec in part)), name).values() if part else []
    return names + [HISTOGRAM] if importlib.util.find_spec("matplotlib") else names


def _write_clean(
    split: _Split, problems: ProblemList, specs: Sequence[DatasetSpec], out: Path, streams: dict[str, TextIO]
) -> Iterator[tuple[str, int]]:
    """Copy the sound rows of each file, to be trained on from `out`; yield the copy's name and number of records."""
    sound: dict[str, dict[str, Record]] = {source: {} for source in split.clean_files}
    for record in problems.sound(split.records):
        sound[record.source][record.location or ""] = record
    for source, name in split.clean_files.items():
        rows = iter_rows(source) if sound[source] else iter(())
        roots = dict.fromkeys(spec.data_path for spec in specs if spec.annotation_path == source)
        yield name, write_sound_rows(streams[name], rows, sound[source], roots, str(out))


@dataclass(frozen=True)
class CheckResult:
    """What a finished check found and wrote.

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
        """Yield the report part by part, as computed: the last parts plan an epoch and build a model."""
        flags, problems = self.check.flags, self.check.problems
        rows = [("problems", len(problems)), *((f"  {name}", count) for name, count in problems.by_check())]
        rows += [(f"records in {name}", count) for name, count in self.written]
        rows += length_rows(self.lengths, flags.training.model_max_length) if len(self.lengths) else []
        yield format_summary(f"Checked {flags.data.dataset_use} -> {Path(flags.check.out)}", rows)
        if not self.has_histogram:
            yield f"no {HISTOGRAM}: matplotlib is not installed (pip install matplotlib)"
        yield from _plan_sections(self.check, self.training)


def _plan_sections(check: DataCheck, split: _Split) -> Iterator[str]:
    """Yield what training on the valid records would be like."""
    data, flags = check.sound_data(split), check.flags
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
        yield format_table(memory_table(chosen, flags, check.vision_config))
    else:
        yield "GPU memory: no estimate, because no --tune_mm_* flag says what is trained"


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

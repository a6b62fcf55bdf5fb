"""Make the data of a run: from the names of its datasets to samples, batches and the order in which they come."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from qwenvl.data import data_list, load_datasets
from qwenvl.data.annotations import Annotations, BadSample, BadSampleTracker, Record
from qwenvl.data.collators import (
    DataCollatorForSupervisedDataset,
    FlattenedDataCollatorForSupervisedDataset,
    Sample,
)
from qwenvl.data.dataset_cache import (
    WORTH_BYTES,
    DatasetCache,
    MediaStamps,
    PreparedData,
    RecordingTracker,
    annotation_bytes,
    collect_messages,
    digest_files,
    digest_of,
    digest_processor,
)
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.data.lengths import TokenCounter, TokenCounts, media_paths, usable_places
from qwenvl.data.media.sizes import scan_media_sizes
from qwenvl.data.packing import PackSampler, PackTable, SampleRef, complete_packs, place_packs
from qwenvl.data.pixel_limits import PixelLimits, set_pixel_limits
from qwenvl.data.record_table import count_media, select
from qwenvl.data.sample_digest import digest_samples
from qwenvl.data.thinking_turns import count_thoughtless_answers, split_thinking_turns, tell_thoughtless_answers
from qwenvl.errors import UserError

logger = logging.getLogger(__name__)

# Flags that change nothing of what is read and counted.
_FLAGS_BESIDE_THE_DATA = frozenset(
    ("dataset_use", "eval_dataset_use", "data_flatten", "bad_sample_policy", "max_bad_samples", "media_cache_dir")
)
# Samples of kept data that are made to see that their lengths are still right.
_PROBES = 8


class DataConfig(PixelLimits, Protocol):
    """The data flags of a run, as `DataArguments` has them."""

    dataset_use: str
    eval_dataset_use: str
    data_flatten: bool
    data_packing: bool
    bad_sample_policy: Literal["error", "skip"]
    max_bad_samples: int
    media_cache_dir: str | None
    max_image_pixels: int
    thinking_turns: Literal["each", "last"]


class BatchConfig(Protocol):
    """The training flags that decide how samples become batches, as `TrainingArguments` has them."""

    model_max_length: int
    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    seed: int
    data_seed: int | None
    world_size: int
    process_index: int
    local_process_index: int

    def main_process_first(self, local: bool = True, desc: str = "work") -> AbstractContextManager[None]:
        """Let the first process of each node do something before the others."""


class SampleError(UserError):
    """A sample that cannot be loaded; stays one line when a DataLoader worker hands it on inside a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition("\n")[2].removeprefix(f"{__name__}.{type(self).__name__}: "))


class SupervisedDataset(Dataset):
    """The usable records of a data set; `packs` lists the indices of those that come together."""

    def __init__(
        self,
        records: Sequence[Record],
        counts: TokenCounts,
        packs: Sequence[Sequence[int]],
        encoder: RecordEncoder,
        bad_sample_policy: Literal["error", "skip"] = "error",
        digest: str | None = None,
    ) -> None:
        self.records = records
        self.counts = counts
        self.packs = PackTable.of(packs)
        self.encoder = encoder
        self._bad_sample_policy = bad_sample_policy
        self._digest = digest

    @property
    def digest(self) -> str:
        """What tells these samples from other ones (see `digest_samples`); kept with the data of a large dataset."""
        if self._digest is None:
            self._digest = digest_samples(self.records, self.counts, self.packs)
        return self._digest

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each record, int64 (n,)."""
        return self.counts.total

    def media_kinds(self) -> set[str]:
        """Return which of "image" and "video" the records have."""
        images, videos = count_media(self.records)
        return {kind for kind, counts in (("image", images), ("video", videos)) if counts.any()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """Return the sample: what `RecordEncoder.encode` gives, its index, and whether it is padding.

        A sample whose files cannot be read raises `SampleError` under the policy "error", and under "skip" becomes
        `{"bad": BadSample}`, for the main process to count.
        """
        record = self.records[ref.index]
        try:
            sample = self.encoder.encode(record)
            self._check_length(ref.index, len(sample["input_ids"]))
        except (UserError, OSError) as error:
            bad = BadSample.of(record, None, str(error))
            if self._bad_sample_policy == "error":
                raise SampleError(str(bad)) from error
            return {"bad": bad}
        if ref.is_padding:
            sample["labels"].fill_(IGNORE_INDEX)
        return sample | {"index": ref.index, "is_padding": ref.is_padding}

    def _check_length(self, index: int, length: int) -> None:
        if length != self.lengths[index]:
            raise UserError(
                f"{length} tokens, but {self.lengths[index]} when the run began: one of its files was changed; start "
                "again"
            )


@dataclass(frozen=True)
class DataModule:
    """The data of a run: samples, how they are joined, and which of them each process draws when."""

    train_dataset: SupervisedDataset
    eval_dataset: SupervisedDataset | None
    data_collator: DataCollatorForSupervisedDataset | FlattenedDataCollatorForSupervisedDataset
    train_sampler: PackSampler
    eval_sampler: PackSampler | None
    bad_samples: BadSampleTracker

    @property
    def datasets(self) -> list[SupervisedDataset]:
        """The data sets that there are: for training, and for evaluation."""
        return [dataset for dataset in (self.train_dataset, self.eval_dataset) if dataset is not None]

    def use_features(self, load_features: Callable[[str], torch.Tensor]) -> None:
        """Take every picture as its encoder features, which `load_features` has for its path."""
        for dataset in self.datasets:
            dataset.encoder.use_features(load_features)
        self.data_collator.dummies = self.train_dataset.encoder.blank_samples()


def make_supervised_data_module(
    processor: ProcessorMixin,
    data_args: DataConfig,
    training_args: BatchConfig,
    varlen: bool = False,
    *,
    only_vision_is_trained: bool = False,
) -> DataModule:
    """Read, check and count all samples of a run and plan its batches; no picture is decoded yet.

    Sets the pixel limits of `processor`. `varlen` adds the boundaries that variable-length attention kernels want to
    flattened batches. `only_vision_is_trained` puts a medium into every batch, because a loss that none has reached
    cannot be differentiated. Raises `UserError` for whatever is wrong with the data.
    """
    set_pixel_limits(processor, data_args)
    tracker = BadSampleTracker(data_args.bad_sample_policy, data_args.max_bad_samples)
    encoder = RecordEncoder(processor, data_args.max_image_pixels)
    reader = _DatasetReader(encoder, tracker, data_args, training_args)
    train_dataset = reader.read(data_args.dataset_use)
    eval_dataset = reader.read(data_args.eval_dataset_use) if data_args.eval_dataset_use else None
    required_kinds: set[str] = set()
    if training_args.world_size > 1 or only_vision_is_trained:
        required_kinds = train_dataset.media_kinds() | (eval_dataset.media_kinds() if eval_dataset else set())
    dummies = encoder.blank_samples()
    if data_args.data_packing or data_args.data_flatten:
        collator = FlattenedDataCollatorForSupervisedDataset(
            dummies, sorted(required_kinds), encoder.placeholders, varlen=varlen
        )
    else:
        collator = DataCollatorForSupervisedDataset(
            dummies, sorted(required_kinds), encoder.placeholders, pad_token_id=processor.tokenizer.pad_token_id
        )
    return DataModule(
        train_dataset,
        eval_dataset,
        collator,
        _sampler(train_dataset, training_args, training_args.per_device_train_batch_size, shuffle=True),
        eval_dataset and _sampler(eval_dataset, training_args, training_args.per_device_eval_batch_size, shuffle=False),
        tracker,
    )


def _data_seed(training_args: BatchConfig) -> int:
    return training_args.seed if training_args.data_seed is None else training_args.data_seed


def _sampler(dataset: SupervisedDataset, training_args: BatchConfig, batch_size: int, shuffle: bool) -> PackSampler:
    return PackSampler(
        dataset.packs,
        batch_size,
        training_args.world_size,
        training_args.process_index,
        _data_seed(training_args),
        dataset.lengths,
        shuffle,
    )


@dataclass(frozen=True)
class _DatasetReader:
    """Reads data sets as one run's flags say."""

    encoder: RecordEncoder
    tracker: BadSampleTracker
    data_args: DataConfig
    training_args: BatchConfig

    def read(self, dataset_use: str) -> SupervisedDataset:
        """Return the usable records of the named data sets with their packs, in which every record is exactly once.

        Large data are read and counted by one process of a node; the others, and later starts, take what it has kept.
        """
        cache = self._cache(dataset_use)
        if cache is None:
            first = self.training_args.main_process_first(desc="reading the headers of media")
            data, _ = self._prepare(dataset_use, first)
        else:
            with self.training_args.main_process_first(desc="reading the data"):
                data = self._kept(cache) or self._prepare_and_keep(dataset_use, cache)
        return SupervisedDataset(
            data.records, data.counts, data.packs, self.encoder, self.data_args.bad_sample_policy, data.digest
        )

    def _cache(self, dataset_use: str) -> DatasetCache | None:
        """Return where the prepared data are kept; None for small data, and where their content cannot be told."""
        specs = data_list(dataset_use)
        files = sorted({spec.annotation_path for spec in specs})
        try:
            if annotation_bytes(files) < WORTH_BYTES:
                return None
            processor = digest_processor(self.encoder.processor)
            if processor is None:
                return None
            flags = {key: value for key, value in vars(self.data_args).items() if key not in _FLAGS_BESIDE_THE_DATA}
            limit, seed = self.training_args.model_max_length, _data_seed(self.training_args)
            places = [(spec.annotation_path, os.path.abspath(spec.data_path), spec.percent) for spec in specs]
            key = digest_of(processor, digest_files(files), places, flags, limit, seed)
        except OSError:
            return None
        return DatasetCache(self.data_args.media_cache_dir, key)

    def _kept(self, cache: DatasetCache) -> PreparedData | None:
        """Return what was kept, after telling what was found then; the first process of a node has it checked."""
        is_first = self.training_args.local_process_index == 0
        data = cache.load(check=is_first)
        if data is None:
            return None
        if is_first and not self._is_still_right(data):
            cache.remove()
            return None
        logger.info("%d prepared records taken from %s", len(data.records), cache.folder)
        for bad in data.bad:
            self.tracker.report(bad)
        for level, text in data.messages:
            logger.log(level, "%s", text)
        return data

    def _is_still_right(self, data: PreparedData) -> bool:
        """Whether a few samples have the lengths that were counted, should anything decide them that no key names."""
        for index in np.linspace(0, len(data.records) - 1, _PROBES, dtype=int).tolist():
            try:
                sample = self.encoder.encode(data.records[index])
            except (UserError, OSError):
                return False
            supervised = int((sample["labels"] != IGNORE_INDEX).sum())
            if (len(sample["input_ids"]), supervised) != (data.counts.total[index], data.counts.supervised[index]):
                return False
        return True

    def _prepare_and_keep(self, dataset_use: str, cache: DatasetCache) -> PreparedData:
        """Prepare data on disk and return what is kept of them; in memory where they cannot be written."""
        messages: list[tuple[int, str]] = []
        tracker = RecordingTracker(self.tracker)
        try:
            with cache.scratch() as folder, collect_messages(messages):
                data, stamps = replace(self, tracker=tracker)._prepare(dataset_use, nullcontext(), folder)
                data = replace(data, bad=tracker.samples, messages=messages)
                cache.save(data, stamps, replace=self.training_args.process_index == 0)
        except OSError as error:
            logger.warning("cannot keep the prepared data in %s (%s); each process reads them", cache.folder, error)
        else:
            # The counter and what it remembers refer to each other: without this they stay for a long time.
            del data, stamps
            gc.collect()
        kept = cache.load(check=False)
        return self._prepare(dataset_use, nullcontext())[0] if kept is None else kept

    def _prepare(
        self, dataset_use: str, first: AbstractContextManager[None], table_folder: Path | None = None
    ) -> tuple[PreparedData, MediaStamps | None]:
        """Read, check and count; media headers within `first`.

        With a `table_folder`, records stay on disk there; returned are also the stamps of the media, taken before.
        """
        seed, cache_dir = _data_seed(self.training_args), self.data_args.media_cache_dir
        annotations = load_datasets(dataset_use, seed, self.tracker, cache_dir, table_folder)
        if annotations.packs is not None and not self.data_args.data_packing:
            raise UserError(
                f"{dataset_use} is a nested list, in which samples are packed already; expected --data_packing True: "
                "set it, or give the list that the packs were made from"
            )
        media = media_paths(annotations.records)
        stamps = None if table_folder is None else MediaStamps(*media, self.tracker.samples)
        annotations = self._with_thoughts(dataset_use, annotations)
        with first:
            sizes = scan_media_sizes(*media, cache_dir, self.data_args.max_image_pixels)
        with _out_of_garbage_collection():
            counts = TokenCounter(self.encoder).count(annotations.records, sizes)
        kept = usable_places(annotations.records, counts, self.training_args.model_max_length, self.tracker)
        if not len(kept):
            raise UserError(f"{dataset_use}: none of the {len(annotations.records)} records is usable; see the log")
        records, counts = select(annotations.records, kept), counts.of(kept)
        if self.data_args.data_packing:
            given = place_packs(annotations.packs or (), kept)
            limit = self.training_args.model_max_length
            packs = complete_packs(given, counts.total, limit, seed, lambda index: records[index].where)
        else:
            packs = PackTable.singles(len(records))
        return PreparedData(records, counts, packs), stamps

    def _with_thoughts(self, dataset_use: str, annotations: Annotations) -> Annotations:
        """Return the records as a Thinking model's template keeps their thoughts, and tell what that means for them."""
        annotations, told = split_thinking_turns(annotations, self.encoder, self.data_args.thinking_turns)
        if told is not None:
            logger.info("%s: %s", dataset_use, told)
        if self.encoder.opens_thoughts:
            num_answers, num_thoughtless = count_thoughtless_answers(annotations.records)
            if num_thoughtless:
                logger.warning("%s: %s", dataset_use, tell_thoughtless_answers(num_answers, num_thoughtless))
        return annotations


@contextmanager
def _out_of_garbage_collection() -> Iterator[None]:
    """Spare Python the search for garbage among the millions of objects that are there, a third of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

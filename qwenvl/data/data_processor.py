"""Build the data of a run: from the names of its datasets to samples, batches and their order."""

import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin, TrainingArguments

from qwenvl.data import data_list, load_datasets
from qwenvl.data.annotations import Annotations, BadSample, BadSampleTracker, Record
from qwenvl.data.arguments import DataArguments
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
from qwenvl.data.lengths import TokenCounter, TokenCounts, find_usable, media_paths
from qwenvl.data.media.sizes import scan_media_sizes
from qwenvl.data.normalization import PatchNormalizer
from qwenvl.data.packing import PackSampler, PackTable, SampleRef, complete_packs, renumber_packs
from qwenvl.data.pixel_limits import set_pixel_limits
from qwenvl.data.record_table import count_media, select
from qwenvl.data.sample_digest import digest_samples
from qwenvl.data.thinking_turns import count_thoughtless_answers, describe_thoughtless_answers, split_thinking_turns
from qwenvl.errors import UserError

logger = logging.getLogger(__name__)

# Flags that do not affect what is read and counted.
_IRRELEVANT_FLAGS = frozenset(
    ("dataset_use", "eval_dataset_use", "data_flatten", "bad_sample_policy", "max_bad_samples", "media_cache_dir")
)
# Samples of cached data that are encoded to verify their lengths.
_PROBES = 8


class SupervisedDataset(Dataset):
    """The usable records of a dataset; `packs` lists the indices of the records that are packed together."""

    def __init__(
        self,
        records: Sequence[Record],
        counts: TokenCounts,
        packs: Sequence[Sequence[int]],
        encoder: RecordEncoder,
        digest: str | None = None,
    ) -> None:
        self.records = records
        self.counts = counts
        self.packs = PackTable.of(packs)
        self.encoder = encoder
        self._digest = digest

    @property
    def digest(self) -> str:
        """Digest that identifies these samples (see `digest_samples`); cached with the data of a large dataset."""
        if self._digest is None:
            self._digest = digest_samples(self.records, self.counts, self.packs)
        return self._digest

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each record, int64 (n,)."""
        return self.counts.total

    def media_kinds(self) -> set[str]:
        """Return which of "image" and "video" occur in the records."""
        images, videos = count_media(self.records)
        return {kind for kind, counts in (("image", images), ("video", videos)) if counts.any()}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """Return the sample: the output of `RecordEncoder.encode`, its index, and whether it is padding.

        A sample whose files cannot be read becomes `{"bad": BadSample}`. The collator passes it on with the batch, and
        the main process reports it to the run's `BadSampleTracker`: an exception raised in a DataLoader worker would
        arrive there as the text of a traceback, without its fields.
        """
        record = self.records[ref.index]
        try:
            sample = self.encoder.encode(record)
            self._check_length(ref.index, len(sample["input_ids"]))
        except UserError as error:
            return {"bad": BadSample.of(record, error.path, error.reason)}
        except OSError as error:
            return {"bad": BadSample.of(record, None, str(error))}
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
    """The data of a run: samples, collator, and samplers that assign the samples to processes and steps."""

    train_dataset: SupervisedDataset
    eval_dataset: SupervisedDataset | None
    data_collator: DataCollatorForSupervisedDataset | FlattenedDataCollatorForSupervisedDataset
    train_sampler: PackSampler
    eval_sampler: PackSampler | None
    bad_samples: BadSampleTracker

    @property
    def datasets(self) -> list[SupervisedDataset]:
        """The training dataset, and the evaluation dataset if there is one."""
        return [dataset for dataset in (self.train_dataset, self.eval_dataset) if dataset is not None]

    def defer_normalization(self) -> PatchNormalizer | None:
        """Let the batches hold images as uint8 levels, and return what normalizes them; None where that cannot be."""
        normalizers = [dataset.encoder.defer_normalization() for dataset in self.datasets]
        self.data_collator.dummies = self.train_dataset.encoder.blank_samples()
        return normalizers[0]

    def use_features(self, load_features: Callable[[str], torch.Tensor]) -> None:
        """Load the encoder features of every image in place of its pixels; `load_features` returns them for a path."""
        for dataset in self.datasets:
            dataset.encoder.use_features(load_features)
        self.data_collator.dummies = self.train_dataset.encoder.blank_samples()


def make_supervised_data_module(
    processor: ProcessorMixin,
    data_args: DataArguments,
    training_args: TrainingArguments,
    model_max_length: int,
    *,
    varlen: bool = False,
    only_vision_is_trained: bool = False,
) -> DataModule:
    """Read, check and count all samples of a run and plan its batches; no image is decoded yet.

    Sets the pixel limits of `processor`. `varlen` adds the boundaries for variable-length attention kernels to
    flattened batches. `only_vision_is_trained` puts a medium into every batch, because a loss that depends on none has
    no gradient. Raises `UserError` for any problem with the data.
    """
    set_pixel_limits(processor, data_args)
    tracker = BadSampleTracker(data_args.bad_sample_policy, data_args.max_bad_samples)
    encoder = RecordEncoder(processor, data_args.max_image_pixels)
    reader = _DatasetReader(encoder, tracker, data_args, training_args, model_max_length)
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


def _data_seed(training_args: TrainingArguments) -> int:
    return training_args.seed if training_args.data_seed is None else training_args.data_seed


def _sampler(
    dataset: SupervisedDataset, training_args: TrainingArguments, batch_size: int, shuffle: bool
) -> PackSampler:
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
    """Reads datasets according to the flags of a run."""

    encoder: RecordEncoder
    tracker: BadSampleTracker
    data_args: DataArguments
    training_args: TrainingArguments
    model_max_length: int

    def read(self, dataset_use: str) -> SupervisedDataset:
        """Return the usable records of the named datasets with their packs, which contain every record exactly once.

        Large data are read and counted by one process per node; the others, and later starts, load its cached result.
        """
        cache = self._cache(dataset_use)
        if cache is None:
            first = self.training_args.main_process_first(desc="reading the headers of media")
            data, _ = self._prepare(dataset_use, first)
        else:
            with self.training_args.main_process_first(desc="reading the data"):
                data = self._load_cached(cache) or self._prepare_and_cache(dataset_use, cache)
        return SupervisedDataset(data.records, data.counts, data.packs, self.encoder, data.digest)

    def _cache(self, dataset_use: str) -> DatasetCache | None:
        """Return the cache entry of the prepared data; None for small data and if their content has no digest."""
        specs = data_list(dataset_use)
        files = sorted({spec.annotation_path for spec in specs})
        try:
            if annotation_bytes(files) < WORTH_BYTES:
                return None
            processor = digest_processor(self.encoder.processor)
            if processor is None:
                return None
            flags = {key: value for key, value in vars(self.data_args).items() if key not in _IRRELEVANT_FLAGS}
            limit, seed = self.model_max_length, _data_seed(self.training_args)
            entries = [(spec.annotation_path, os.path.abspath(spec.data_path), spec.percent) for spec in specs]
            key = digest_of(processor, digest_files(files), entries, flags, limit, seed)
        except OSError:
            return None
        return DatasetCache(self.data_args.media_cache_dir, key)

    def _load_cached(self, cache: DatasetCache) -> PreparedData | None:
        """Return the cached data, after repeating their log messages; the first process of a node verifies them."""
        is_first = self.training_args.local_process_index == 0
        data = cache.load(check=is_first)
        if data is None:
            return None
        if is_first and not self._is_valid(data):
            cache.remove()
            return None
        logger.info("%d prepared records loaded from %s", len(data.records), cache.folder)
        for bad in data.bad:
            self.tracker.report(bad)
        for level, text in data.messages:
            logger.log(level, "%s", text)
        return data

    def _is_valid(self, data: PreparedData) -> bool:
        """Whether a few samples have the lengths that were counted, in case something outside the key affects them."""
        for index in np.linspace(0, len(data.records) - 1, _PROBES, dtype=int).tolist():
            try:
                sample = self.encoder.encode(data.records[index])
            except (UserError, OSError):
                return False
            supervised = int((sample["labels"] != IGNORE_INDEX).sum())
            if (len(sample["input_ids"]), supervised) != (data.counts.total[index], data.counts.supervised[index]):
                return False
        return True

    def _prepare_and_cache(self, dataset_use: str, cache: DatasetCache) -> PreparedData:
        """Prepare data on disk and return the cached result; prepare them in memory if they cannot be written."""
        messages: list[tuple[int, str]] = []
        tracker = RecordingTracker(self.tracker)
        try:
            with cache.scratch() as folder, collect_messages(messages):
                data, stamps = replace(self, tracker=tracker)._prepare(dataset_use, nullcontext(), folder)
                data = replace(data, bad=tracker.samples, messages=messages)
                cache.save(data, stamps, replace=self.training_args.process_index == 0)
        except OSError as error:
            logger.warning("cannot write the prepared data to %s (%s); each process reads them", cache.folder, error)
        else:
            # The counter and its caches form a reference cycle: without this they stay in memory for a long time.
            del data, stamps
            gc.collect()
        cached = cache.load(check=False)
        return self._prepare(dataset_use, nullcontext())[0] if cached is None else cached

    def _prepare(
        self, dataset_use: str, first: AbstractContextManager[None], table_folder: Path | None = None
    ) -> tuple[PreparedData, MediaStamps | None]:
        """Read, check and count; media headers are read within `first`.

        With a `table_folder`, records stay on disk there, and the stamps of the media, taken before, are also returned.
        """
        seed, cache_dir = _data_seed(self.training_args), self.data_args.media_cache_dir
        annotations = load_datasets(dataset_use, seed, self.tracker, cache_dir, table_folder)
        if annotations.packs is not None and not self.data_args.data_packing:
            raise UserError(
                f"{dataset_use} is a nested list of packed samples; expected --data_packing True: "
                "set it, or give the list that the packs were made from"
            )
        media = media_paths(annotations.records)
        stamps = None if table_folder is None else MediaStamps(*media, self.tracker.samples)
        annotations = self._split_thinking_turns(dataset_use, annotations)
        with first:
            sizes = scan_media_sizes(*media, cache_dir, self.data_args.max_image_pixels)
        with _frozen_garbage_collection():
            counts = TokenCounter(self.encoder).count(annotations.records, sizes)
        usable = find_usable(annotations.records, counts, self.model_max_length, self.tracker)
        if not len(usable):
            raise UserError(f"{dataset_use}: none of the {len(annotations.records)} records is usable; see the log")
        records, counts = select(annotations.records, usable), counts.of(usable)
        if self.data_args.data_packing:
            given = renumber_packs(annotations.packs or (), usable)
            packs = complete_packs(
                given, counts.total, self.model_max_length, seed, lambda index: records[index].full_location
            )
        else:
            packs = PackTable.singles(len(records))
        return PreparedData(records, counts, packs), stamps

    def _split_thinking_turns(self, dataset_use: str, annotations: Annotations) -> Annotations:
        """Split the records whose thoughts a Thinking model's template leaves out, and log what that changes."""
        annotations, message = split_thinking_turns(annotations, self.encoder, self.data_args.thinking_turns)
        if message is not None:
            logger.info("%s: %s", dataset_use, message)
        if self.encoder.opens_thoughts:
            num_answers, num_thoughtless = count_thoughtless_answers(annotations.records)
            if num_thoughtless:
                logger.warning("%s: %s", dataset_use, describe_thoughtless_answers(num_answers, num_thoughtless))
        return annotations


@contextmanager
def _frozen_garbage_collection() -> Iterator[None]:
    """Exclude the millions of existing objects from garbage collection, which took a third of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

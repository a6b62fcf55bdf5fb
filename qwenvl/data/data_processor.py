"""Owns the data of a run: from the names of its data sets to samples, batches and the order in which they come."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from qwenvl.data import load_datasets
from qwenvl.data.annotations import BadSample, BadSampleLedger, Record
from qwenvl.data.collators import (
    DataCollatorForSupervisedDataset,
    FlattenedDataCollatorForSupervisedDataset,
    Sample,
)
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.labels import IGNORE_INDEX
from qwenvl.data.lengths import TokenCounter, TokenCounts, read_media_sizes, usable_places
from qwenvl.data.packing import Draw, PackSampler, plan_packs
from qwenvl.data.pixel_limits import PixelLimits, set_pixel_limits
from qwenvl.errors import UserError


class DataConfig(PixelLimits, Protocol):
    """The data flags of a run, as `DataArguments` has them."""

    dataset_use: str
    eval_dataset_use: str
    data_flatten: bool
    data_packing: bool
    bad_sample_policy: Literal["error", "skip"]
    max_bad_samples: int
    media_cache_dir: str | None


class BatchConfig(Protocol):
    """The training flags that decide how samples become batches, as `TrainingArguments` has them."""

    model_max_length: int
    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    seed: int
    data_seed: int | None
    world_size: int
    process_index: int

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
    ) -> None:
        self.records = records
        self.counts = counts
        self.packs = packs
        self.encoder = encoder
        self._bad_sample_policy = bad_sample_policy

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each record, int64 (n,)."""
        return self.counts.total

    def media_kinds(self) -> set[str]:
        """Return which of "image" and "video" the records have."""
        kinds = {"image": any(record.images for record in self.records)}
        kinds["video"] = any(record.videos for record in self.records)
        return {kind for kind, present in kinds.items() if present}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Sample:
        """Return the drawn sample: what `RecordEncoder.encode` gives, its index, and whether it is a filler.

        A sample whose files cannot be read raises `SampleError` under the policy "error", and under "skip" becomes
        `{"bad": BadSample}`, for the main process to count.
        """
        record = self.records[draw.index]
        try:
            sample = self.encoder.encode(record)
            self._check_length(draw.index, len(sample["input_ids"]))
        except (UserError, OSError) as error:
            bad = BadSample(record.where, None, str(error))
            if self._bad_sample_policy == "error":
                raise SampleError(str(bad)) from error
            return {"bad": bad}
        if draw.filler:
            sample["labels"].fill_(IGNORE_INDEX)
        return sample | {"index": draw.index, "filler": draw.filler}

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
    bad_samples: BadSampleLedger

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
    ledger = BadSampleLedger(data_args.bad_sample_policy, data_args.max_bad_samples)
    encoder = RecordEncoder(processor)
    reader = _DatasetReader(encoder, ledger, data_args, training_args)
    train_dataset = reader.read(data_args.dataset_use)
    eval_dataset = reader.read(data_args.eval_dataset_use) if data_args.eval_dataset_use else None
    required_kinds: set[str] = set()
    if training_args.world_size > 1 or only_vision_is_trained:
        required_kinds = train_dataset.media_kinds() | (eval_dataset.media_kinds() if eval_dataset else set())
    dummies = encoder.blank_samples()
    if data_args.data_packing or data_args.data_flatten:
        collator = FlattenedDataCollatorForSupervisedDataset(dummies, sorted(required_kinds), varlen)
    else:
        collator = DataCollatorForSupervisedDataset(dummies, sorted(required_kinds), processor.tokenizer.pad_token_id)
    return DataModule(
        train_dataset,
        eval_dataset,
        collator,
        _sampler(train_dataset, training_args, training_args.per_device_train_batch_size, shuffle=True),
        eval_dataset and _sampler(eval_dataset, training_args, training_args.per_device_eval_batch_size, shuffle=False),
        ledger,
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
    ledger: BadSampleLedger
    data_args: DataConfig
    training_args: BatchConfig

    def read(self, dataset_use: str) -> SupervisedDataset:
        """Return the usable records of the named data sets with their packs, in which every record is exactly once."""
        seed, cache_dir = _data_seed(self.training_args), self.data_args.media_cache_dir
        annotations = load_datasets(dataset_use, seed, self.ledger, cache_dir)
        if annotations.packs is not None and not self.data_args.data_packing:
            raise UserError(
                f"{dataset_use} is a nested list, in which samples are packed already; expected --data_packing True: "
                "set it, or give the list that the packs were made from"
            )
        with self.training_args.main_process_first(desc="reading the headers of media"):
            sizes = read_media_sizes(annotations.records, self.data_args.media_cache_dir)
        counts = TokenCounter(self.encoder).count(annotations.records, sizes)
        kept = usable_places(annotations.records, counts, self.training_args.model_max_length, self.ledger)
        if not len(kept):
            raise UserError(f"{dataset_use}: none of the {len(annotations.records)} records is usable; see the log")
        records, counts = [annotations.records[index] for index in kept], counts.of(kept)
        packs = self._packs(records, counts.total, _renumbered(annotations.packs, kept))
        return SupervisedDataset(records, counts, packs, self.encoder, self.data_args.bad_sample_policy)

    def _packs(self, records: Sequence[Record], lengths: np.ndarray, given: list[list[int]] | None) -> list[list[int]]:
        """Return the packs that the file gives, with packs planned for the records that it leaves alone."""
        if not self.data_args.data_packing:
            return [[index] for index in range(len(records))]
        capacity = self.training_args.model_max_length
        packs = [pack for pack in given or [] if len(pack) > 1]
        for pack in packs:
            if lengths[pack].sum() > capacity:
                raise UserError(
                    f"{records[pack[0]].where}: its pack has {lengths[pack].sum()} tokens, expected at most "
                    f"--model_max_length {capacity}: raise it, or pack the file again with tools/pack_data.py"
                )
        alone = np.setdiff1d(np.arange(len(records)), [index for pack in packs for index in pack])
        planned = plan_packs(lengths[alone], capacity, _data_seed(self.training_args))
        return packs + [alone[pack].tolist() for pack in planned]


def _renumbered(packs: list[list[int]] | None, kept: np.ndarray) -> list[list[int]] | None:
    """Return the packs with the places that the kept records now have, without those that were left out."""
    if packs is None:
        return None
    places = {old: new for new, old in enumerate(kept.tolist())}
    packs = [[places[index] for index in pack if index in places] for pack in packs]
    return [pack for pack in packs if pack]

"""Fill the feature cache of a run before training, in all processes, and make the data read it instead of images."""

import logging
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from qwenvl.checkpoint.disk import existing_folder
from qwenvl.data.annotations import BadSample
from qwenvl.data.data_processor import DataModule
from qwenvl.data.media.sizes import ImageSize, scan_media_sizes
from qwenvl.data.workers import explain_dead_workers
from qwenvl.errors import UserError
from qwenvl.model.build import compute_dtype
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
from qwenvl.utils.distributed import barrier
from qwenvl.utils.zero3 import gathered
from qwenvl.vision import CUSTOM_MODEL_TYPES
from qwenvl.vision.cache.filling import Work, fill_cache, hash_files
from qwenvl.vision.cache.store import FeatureCache, estimate_bytes

logger = logging.getLogger(__name__)

_GB = 1e9


def check_feature_cache(model_args: ModelArguments, base_config: PreTrainedConfig) -> None:
    """Raise `UserError` if the encoder is Qwen3-VL's own, or the cache cannot be a folder."""
    folder = model_args.cache_vision_features
    if not folder:
        return
    if model_args.custom_vision_encoder is None and base_config.model_type not in CUSTOM_MODEL_TYPES:
        raise UserError(
            f"--cache_vision_features {folder} keeps the features of a custom encoder, and "
            f"{model_args.model_name_or_path} has Qwen3-VL's own; name one by --custom_vision_encoder, or leave out "
            "--cache_vision_features"
        )
    if not existing_folder(Path(folder)).is_dir():
        raise UserError(f"--cache_vision_features {folder}: {existing_folder(Path(folder))} is a file; give a folder")


def cache_features(
    model: nn.Module, data: DataModule, folder: str, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Compute the encoder features that `folder` does not hold yet, and make the data use them.

    Logs their size first; a dry run stops there. Images that cannot be read are reported as bad samples.
    Raises `UserError` if the disk has too little space, and for a folder that cannot be read or written.
    """
    locations, num_videos = _images_and_videos(data)
    if num_videos:
        logger.info("vision features: %d videos are not cached, their frames are encoded each time", num_videos)
    if not locations:
        return
    paths = sorted(locations)
    tower = next(module for name, module in model.named_modules() if name.endswith("model.visual"))
    encoder = data.train_dataset.encoder
    image_processor = encoder.processor.image_processor
    autocast = _autocast(training_args)

    def num_bytes(images: Sequence[str]) -> int:
        sizes = scan_media_sizes(images, [], data_args.media_cache_dir, data_args.max_image_pixels).values()
        return estimate_bytes([s for s in sizes if isinstance(s, ImageSize)], tower, image_processor, autocast)

    def report_unreadable(path: str, reason: str) -> None:
        for source, location in locations[path]:
            data.bad_samples.report(BadSample(source, location, path, reason))

    if training_args.dry_run:
        _log_size(len(paths), num_bytes(paths), folder)
        return
    work = Work(training_args.process_index, training_args.world_size, training_args.dataloader_num_workers)
    with gathered(tower.parameters()):
        cache = FeatureCache(folder, tower, image_processor, autocast)
        hash_files(cache, paths, work)
        barrier()
        cache.reload()
        missing = cache.missing(paths)
        _check_room(len(missing), len(paths), num_bytes(list(missing.values())), cache.folder)
        barrier()
        tower.to(training_args.device)
        with explain_dead_workers(work.num_workers, go_on="start again: the features that are stored are kept"):
            fill_cache(cache, tower, image_processor, missing, encoder.load_image, report_unreadable, work)
        barrier()
    cache.reload()
    data.use_features(cache.load)


def _images_and_videos(data: DataModule) -> tuple[dict[str, list[tuple[str, str]]], int]:
    """Return the file and location of each image's records, by its path, and the number of videos."""
    locations = defaultdict(list)
    videos = set()
    for dataset in data.datasets:
        for record in dataset.records:
            videos.update(record.videos)
            for path in record.images:
                locations[path].append((record.source, record.location or f"row {record.row}"))
    return locations, len(videos)


def _autocast(training_args: TrainingArguments) -> torch.dtype | None:
    """Return the precision of the Trainer's autocast; None under DeepSpeed, which converts the model."""
    uses_autocast = training_args.half_precision and not training_args.deepspeed
    return compute_dtype(training_args) if uses_autocast else None


def _log_size(count: int, needed: int, folder: str) -> None:
    logger.info(
        "vision features: %d images take %.3g GB in %s, with %.3g GB free; features stored already are counted",
        count,
        needed / _GB,
        folder,
        shutil.disk_usage(existing_folder(Path(folder))).free / _GB,
    )


def _check_room(num_missing: int, count: int, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    logger.info(
        "vision features: %d of %d images are to be computed, %.3g GB in %s", num_missing, count, needed / _GB, folder
    )
    if needed > free:
        raise UserError(
            f"--cache_vision_features {folder.parent}: the features take {needed / _GB:.1f} GB, but {free / _GB:.1f} "
            "GB are free; choose another disk, or train without the cache"
        )

"""Owns the feature cache in a run: filled before training by all processes, then read in the place of pictures."""

import logging
import shutil

from torch import nn

from qwenvl.data.data_processor import DataModule
from qwenvl.data.images import load_image
from qwenvl.data.media_sizes import ImageSize, scan_media_sizes
from qwenvl.errors import UserError
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.distributed import barrier
from qwenvl.vision.feature_cache import FeatureCache, estimate_bytes, fill_cache

logger = logging.getLogger(__name__)

_GB = 1e9


def cache_features(model: nn.Module, data: DataModule, folder: str, training_args: TrainingArguments) -> None:
    """Compute the encoder features that `folder` does not hold yet, and let the data use them all.

    Tells their size first; raises `UserError` if the disk has no room for them.
    """
    tower = next(module for name, module in model.named_modules() if name.endswith("model.visual"))
    image_processor = data.train_dataset.encoder.processor.image_processor
    cache = FeatureCache(folder, tower, image_processor)
    paths = sorted({path for dataset in data.datasets for record in dataset.records for path in record.images})
    missing = [str(path) for path in cache.missing(paths)]
    sizes = [size for size in scan_media_sizes(missing, []).values() if isinstance(size, ImageSize)]
    needed, free = estimate_bytes(sizes, tower, image_processor), shutil.disk_usage(cache.folder).free
    logger.info(
        "vision features: %d of %d pictures are to be computed, %.2f GB in %s",
        len(missing),
        len(paths),
        needed / _GB,
        cache.folder,
    )
    barrier()
    if needed > free:
        raise UserError(
            f"--cache_vision_features {folder}: the features take {needed / _GB:.1f} GB, but {free / _GB:.1f} GB are "
            "free; choose another disk, or train without the cache"
        )
    tower.to(training_args.device)
    fill_cache(
        cache,
        tower,
        image_processor,
        paths,
        load_image,
        rank=training_args.process_index,
        world_size=training_args.world_size,
        skip_unreadable=data.bad_samples.policy == "skip",
    )
    barrier()
    cache.reload()
    data.use_features(cache.load)

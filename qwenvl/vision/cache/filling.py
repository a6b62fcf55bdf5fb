"""Fill the feature cache: images read by loader processes, encoded in batches, kept in shards."""

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from qwenvl.errors import UserError
from qwenvl.vision.cache.store import FeatureCache
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import CustomVisionTower

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
SECONDS_BETWEEN_REPORTS = 30
_FILES_AT_A_TIME = 1024


@dataclass(frozen=True)
class Work:
    """How a filling is done: by which of how many processes, with how many loader processes, in which batches."""

    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    batch_size: int = 8

    @property
    def name(self) -> str:
        """Who does it, as progress is told."""
        share = f" (process {self.rank + 1} of {self.world_size}, its share)" if self.world_size > 1 else ""
        return f"vision features{share}"


class _Read(NamedTuple):
    """One image as the tower takes it, or why it could not be read."""

    key: str
    path: str
    pixel_values: torch.Tensor | None = None
    grid_thw: torch.Tensor | None = None
    flaw: str | None = None


class _Pictures(Dataset):
    """Images, prepared for the tower in the process that reads them."""

    def __init__(
        self,
        files: Sequence[tuple[str, str]],
        load_image: Callable[[str], Any],
        image_processor: CustomVisionImageProcessor,
    ) -> None:
        self.files = files
        self.load_image = load_image
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Read:
        key, path = self.files[index]
        try:
            made = self.image_processor([self.load_image(path)], return_tensors="pt")
        except UserError as error:
            return _Read(key, path, flaw=error.reason_for(path))
        except OSError as error:
            return _Read(key, path, flaw=str(error))
        return _Read(key, path, made["pixel_values"], made["image_grid_thw"])


class _Progress:
    """Tells every half minute how far a long task is, how fast it goes and how long it will take."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._told = time.monotonic()

    def add(self, count: int) -> None:
        """Count what is done."""
        self._done += count
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_REPORTS and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((self._total - self._done) / rate))
        logger.info("%s: %d of %d, %.1f a second, %s left", self._what, self._done, self._total, rate, left)


def hash_files(cache: FeatureCache, paths: Sequence[str], work: Work) -> None:
    """Read this process's share of the files that the cache does not know yet, for their keys; then `reload`."""
    mine = paths[work.rank :: work.world_size]
    progress = _Progress(f"{work.name}: files looked up", len(mine))
    for start in range(0, len(mine), _FILES_AT_A_TIME):
        progress.add(len(cache.keys(mine[start : start + _FILES_AT_A_TIME])))
    cache.write_known_files()


def fill_cache(
    cache: FeatureCache,
    tower: CustomVisionTower,
    image_processor: CustomVisionImageProcessor,
    missing: dict[str, str],
    load_image: Callable[[str], Any],
    report_unreadable: Callable[[str, str], None],
    work: Work,
) -> int:
    """Compute and store the features of the images {key: path} that are missing; return how many it added.

    `load_image` returns an RGB image or raises `UserError`, and then `report_unreadable(path, reason)` ends the
    filling, or the image is left out. Each of several processes takes its share, which depends on the contents alone;
    wait for all, then `reload`. A run that is killed keeps the shards it has finished.
    """
    todo = [(key, path) for key, path in missing.items() if zlib.crc32(key.encode()) % work.world_size == work.rank]
    pictures = _Pictures(todo, load_image, image_processor)
    # A batch comes as a list: its images may have as many sizes.
    loader = DataLoader(pictures, work.batch_size, num_workers=work.num_workers, collate_fn=list)
    progress = _Progress(f"{work.name}: pictures encoded", len(todo))
    pending: dict[str, torch.Tensor] = {}
    added = 0
    for batch in loader:
        for each in batch:
            if each.flaw is not None:
                report_unreadable(each.path, each.flaw)
        usable = [each for each in batch if each.flaw is None]
        pending |= _encode(usable, tower, cache)
        added += len(usable)
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            cache.write(pending)
            pending = {}
        progress.add(len(batch))
    if pending:
        cache.write(pending)
    return added


@torch.no_grad()
def _encode(pictures: Sequence[_Read], tower: CustomVisionTower, cache: FeatureCache) -> dict[str, torch.Tensor]:
    """Return {key: features (rows, columns, D_vis)}, computed as the training computes them."""
    if not pictures:
        return {}
    device = tower.merger.proj.weight.device
    grids = torch.cat([each.grid_thw for each in pictures])
    values = torch.cat([each.pixel_values for each in pictures]).to(device)
    with torch.autocast(device.type, cache.autocast, enabled=cache.autocast is not None):
        features = tower(values, grids).last_hidden_state.to(cache.dtype).cpu()
    parts = features.split(grids.prod(-1).tolist())
    for each, part in zip(pictures, parts, strict=True):
        if not part.isfinite().all():
            raise UserError(
                f"{each.path}: the encoder gives features of it that are infinite or no numbers in {cache.dtype}; look "
                "at the encoder's weights and code, or train without --fp16"
            )
    return {
        each.key: part.reshape(rows, columns, -1).clone()
        for each, part, (_, rows, columns) in zip(pictures, parts, grids.tolist(), strict=True)
    }

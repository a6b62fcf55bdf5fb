"""Fill the feature cache: images are read by loader processes, encoded in batches and stored in shards."""

import io
import logging
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from qwenvl.errors import UserError
from qwenvl.vision.cache.store import FeatureCache
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import CustomVisionTower

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
SECONDS_BETWEEN_LINES = 30
LOG_FORMAT = "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left"
_FILES_AT_A_TIME = 1024


@dataclass(frozen=True)
class Work:
    """How the cache is filled: the process among all processes, its number of loader processes, the batch size."""

    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    batch_size: int = 8

    @property
    def share(self) -> str:
        """The part of the work that this process does, as its progress names it; empty if it does all."""
        return f" (share of process {self.rank + 1} of {self.world_size})" if self.world_size > 1 else ""


class _Prepared(NamedTuple):
    """One image as the tower takes it, or the reason why it could not be read."""

    key: str
    path: str
    pixel_values: torch.Tensor | None = None
    grid_thw: torch.Tensor | None = None
    error: str | None = None


class _ImageDataset(Dataset):
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

    def __getitem__(self, index: int) -> _Prepared:
        key, path = self.files[index]
        try:
            made = self.image_processor([self.load_image(path)], return_tensors="pt")
        except UserError as error:
            return _Prepared(key, path, error=error.reason_for(path))
        except OSError as error:
            return _Prepared(key, path, error=str(error))
        return _Prepared(key, path, made["pixel_values"], made["image_grid_thw"])


class _LogLines(io.TextIOBase):
    """A file for `tqdm` that logs each state of the bar as a line."""

    def write(self, text: str) -> int:
        """Log the text without the carriage return and the spaces by which a bar replaces its last state."""
        if line := text.strip():
            logger.info("%s", line)
        return len(text)


def _progress_bar(unit: str, done: str, total: int, work: Work) -> tqdm:
    """Return a bar of the first process's share: on a terminal as usual, in a log a line each half minute."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=f"vision features: {unit}s {done}{work.share}",
        total=total,
        unit=f" {unit}s",
        disable=work.rank > 0 or total == 0,
        bar_format=None if on_terminal else LOG_FORMAT,
        file=None if on_terminal else _LogLines(),
        mininterval=0.1 if on_terminal else SECONDS_BETWEEN_LINES,
        # Otherwise tqdm skips as many updates as it last saw within the interval, and slow images delay the line.
        miniters=1,
    )


def hash_files(cache: FeatureCache, paths: Sequence[str], work: Work) -> None:
    """Hash this process's share of the files that the cache does not know yet; call `reload` when all have finished."""
    mine = paths[work.rank :: work.world_size]
    with _progress_bar("file", "looked up", len(mine), work) as bar:
        for start in range(0, len(mine), _FILES_AT_A_TIME):
            bar.update(len(cache.keys(mine[start : start + _FILES_AT_A_TIME])))
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

    `load_image` returns an RGB image or raises `UserError`; then `report_unreadable(path, reason)` raises, or the image
    is left out. Each of several processes takes its share, which depends on the contents of the files alone; call
    `reload` when all have finished. A run that is killed keeps the shards it has written.
    """
    todo = [(key, path) for key, path in missing.items() if zlib.crc32(key.encode()) % work.world_size == work.rank]
    images = _ImageDataset(todo, load_image, image_processor)
    # A batch is a list, since its images may differ in size.
    loader = DataLoader(images, work.batch_size, num_workers=work.num_workers, collate_fn=list)
    pending: dict[str, torch.Tensor] = {}
    added = 0
    with _progress_bar("image", "encoded", len(todo), work) as bar:
        for batch in loader:
            features = _encode(_leave_out_unreadable(batch, report_unreadable), tower, cache)
            pending |= features
            added += len(features)
            if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
                cache.write(pending)
                pending = {}
            bar.update(len(batch))
    if pending:
        cache.write(pending)
    return added


def _leave_out_unreadable(batch: Sequence[_Prepared], report_unreadable: Callable[[str, str], None]) -> list[_Prepared]:
    for each in batch:
        if each.error is not None:
            report_unreadable(each.path, each.error)
    return [each for each in batch if each.error is None]


@torch.no_grad()
def _encode(images: Sequence[_Prepared], tower: CustomVisionTower, cache: FeatureCache) -> dict[str, torch.Tensor]:
    """Return {key: features (rows, columns, D_vis)}, computed in the precision of the training."""
    if not images:
        return {}
    device = tower.merger.proj.weight.device
    grids = torch.cat([each.grid_thw for each in images])
    values = torch.cat([each.pixel_values for each in images]).to(device)
    with torch.autocast(device.type, cache.autocast, enabled=cache.autocast is not None):
        features = tower(values, grids).last_hidden_state.to(cache.dtype).cpu()
    parts = features.split(grids.prod(-1).tolist())
    for each, part in zip(images, parts, strict=True):
        if not part.isfinite().all():
            raise UserError(
                f"{each.path}: its features are infinite or NaN in {cache.dtype}; check the encoder's weights and "
                "code, or train without --fp16"
            )
    return {
        each.key: part.reshape(rows, columns, -1).clone()
        for each, part, (_, rows, columns) in zip(images, parts, grids.tolist(), strict=True)
    }

"""Owns the cache of a frozen encoder's features: computed once for each picture, kept on disk, read in later runs.

A cached picture is a tensor (rows, columns, D_vis), and the image processor takes it in the place of the picture.
Features lie in DIR/<fingerprint>/*.safetensors under the SHA-256 of the picture's file; the fingerprint is of the
encoder's weights, its options and the preprocessing, so that another encoder never reads them.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qwenvl.errors import UserError
from qwenvl.vision.encoder import weights_hash
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import CustomVisionTower

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
FINGERPRINT_DIGITS = 16
DESCRIBED = (
    "encoder",
    "encoder_config",
    "layer",
    "final_norm",
    "keep_prefix_tokens",
    "preprocessing",
    "token_grid",
    "prefix_tokens",
    "input_mode",
    "qwen_pixels",
)


class FeatureCache:
    """Features of pictures on disk, looked up by the picture's path: reading works in any number of processes."""

    def __init__(
        self, folder: str | Path, tower: CustomVisionTower, image_processor: CustomVisionImageProcessor
    ) -> None:
        if not tower.encoder_is_frozen:
            raise UserError(
                "--cache_vision_features keeps features of a frozen encoder, but this one is trained; "
                "set --tune_mm_vision False or leave the cache out"
            )
        described = {name: getattr(tower.config, name) for name in DESCRIBED}
        described["limits"] = dict(image_processor.size) if image_processor.takes_pixel_limits else None
        described["weights"] = weights_hash(tower.encoder)
        text = json.dumps(described, sort_keys=True, default=list)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "encoder.json").write_text(json.dumps(described, indent=2, sort_keys=True, default=list))
        self._files: dict[str, Any] = {}
        self.reload()

    def reload(self) -> None:
        """Read anew what the folder holds, after this or another process has added to it."""
        self._shards: dict[str, Path] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            with safe_open(shard, "pt") as file:
                self._shards.update(dict.fromkeys(file.keys(), shard))
        self._keys: dict[str, tuple[int, int, str]] = {}
        for known in sorted(self.folder.glob("*.paths.json")):
            self._keys.update({path: tuple(entry) for path, entry in json.loads(known.read_text()).items()})

    def __getstate__(self) -> dict:
        # Open files cannot be sent to a loader process; each opens its own.
        return {**self.__dict__, "_files": {}}

    def __contains__(self, path: str | Path) -> bool:
        return self.key(path) in self._shards

    def key(self, path: str | Path) -> str:
        """Return the SHA-256 of the file's content, from the list of known files if it has not changed since."""
        name, state = str(path), os.stat(path)
        known = self._keys.get(name)
        if known is None or known[:2] != (state.st_mtime_ns, state.st_size):
            known = (state.st_mtime_ns, state.st_size, hashlib.sha256(Path(path).read_bytes()).hexdigest())
            self._keys[name] = known
        return known[2]

    def load(self, path: str | Path) -> torch.Tensor:
        """Return the features (rows, columns, D_vis) of a picture; raises `UserError` if they are not there."""
        key = self.key(path)
        shard = self._shards.get(key)
        if shard is None:
            raise UserError(f"{path}: no features of it in {self.folder}; fill the cache before training")
        name = str(shard)
        if name not in self._files:
            self._files[name] = safe_open(shard, "pt")
        return self._files[name].get_tensor(key)

    def missing(self, paths: Iterable[str | Path]) -> list[Path]:
        """Return the pictures that have no features yet, each content once, in the order given."""
        absent: dict[str, Path] = {}
        for path in paths:
            key = self.key(path)
            if key not in self._shards:
                absent.setdefault(key, Path(path))
        return list(absent.values())

    def write(self, features: dict[str, torch.Tensor], rank: int) -> None:
        """Add one shard, whole or not at all: {key: (rows, columns, D_vis)}."""
        # Another run may be adding to the same folder.
        target = self.folder / f"rank{rank}-{uuid.uuid4().hex}.safetensors"
        unfinished = target.with_suffix(".unfinished")
        save_file({key: tensor.contiguous() for key, tensor in features.items()}, unfinished)
        os.replace(unfinished, target)

    def write_known_files(self, rank: int) -> None:
        """Keep the keys of known files, so that a later run need not read them all."""
        target = self.folder / f"rank{rank}.paths.json"
        unfinished = target.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps(self._keys))
        os.replace(unfinished, target)


def estimate_bytes(
    sizes: Iterable[tuple[int, int]], tower: CustomVisionTower, image_processor: CustomVisionImageProcessor
) -> int:
    """Return the bytes that features of pictures of these sizes, (height, width) in pixels, take on disk."""
    width = tower.config.hidden_size * next(tower.encoder.parameters()).element_size()
    return sum(image_processor.get_number_of_image_patches(*size) * width for size in sizes)


def fill_cache(
    cache: FeatureCache,
    tower: CustomVisionTower,
    image_processor: CustomVisionImageProcessor,
    paths: Sequence[str | Path],
    load_image: Callable[[str], Any],
    *,
    batch_size: int = 16,
    rank: int = 0,
    world_size: int = 1,
    skip_unreadable: bool = False,
) -> int:
    """Compute and store the features of every picture that has none; return how many this process added.

    `load_image` returns an RGB picture, or raises `UserError`, which ends the filling unless `skip_unreadable`. With
    several processes each takes its share; wait for all, then `reload`. A run that is killed keeps the shards it
    finished.
    """
    todo = cache.missing(paths)[rank::world_size]
    if todo:
        logger.info("computing encoder features of %d pictures into %s", len(todo), cache.folder)
    device = next(tower.encoder.parameters()).device
    pending: dict[str, torch.Tensor] = {}
    for start in range(0, len(todo), batch_size):
        loaded = _loaded(todo[start : start + batch_size], load_image, skip_unreadable)
        if not loaded:
            continue
        batch, pictures = zip(*loaded, strict=True)
        made = image_processor(list(pictures), return_tensors="pt")
        grids = made["image_grid_thw"]
        with torch.no_grad():
            features = tower(made["pixel_values"].to(device), grids).last_hidden_state.cpu()
        parts = features.split(grids.prod(-1).tolist())
        for path, part, (_, rows, columns) in zip(batch, parts, grids.tolist(), strict=True):
            pending[cache.key(path)] = part.reshape(rows, columns, -1).clone()
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES:
            cache.write(pending, rank)
            pending = {}
    if pending:
        cache.write(pending, rank)
    cache.write_known_files(rank)
    cache.reload()
    return len(todo)


def _loaded(paths: Sequence[Path], load_image: Callable[[str], Any], skip_unreadable: bool) -> list[tuple[Path, Any]]:
    """Return the paths with their pictures, without those that cannot be read if they may be left out."""
    loaded = []
    for path in paths:
        try:
            loaded.append((path, load_image(str(path))))
        except UserError as error:
            if not skip_unreadable:
                raise
            logger.warning("no features: %s", error)
    return loaded

"""Keep a frozen encoder's features on disk, and look them up by an image's content, never another's.

A cached image is a tensor (rows, columns, D_vis), and the image processor takes it in the place of the image.
Features lie in DIR/<fingerprint>/*.safetensors under the SHA-256 of the image's file; the fingerprint is of all that
decides what an image's features are, so that what another encoder or another preprocessing made is never read.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qwenvl.errors import UserError
from qwenvl.utils.files import remove_abandoned, written_whole
from qwenvl.vision.encoder import weights_hash
from qwenvl.vision.options import FEATURE_OPTIONS
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import CustomVisionTower

# To be raised when this package reads or prepares images differently: older features are then of no use.
FORMAT = 4
FINGERPRINT_DIGITS = 16
CONFIGURED = (
    "encoder",
    "encoder_config",
    *FEATURE_OPTIONS,
    "preprocessing",
    "token_grid",
    "prefix_tokens",
    "patch_size",
    "qwen_pixels",
)
LIBRARIES = ("torch", "torchvision", "transformers", "pillow")
# These begin with a linear layer, which autocast feeds in half precision anyway.
LINEAR_FIRST_MERGERS = ("simple", "mlp2")
# Hashing waits for the disk, above all for one on the network, more than for the processor.
_THREADS = 16
_CHUNK = 64
_SHA256 = re.compile("[0-9a-f]{64}")


class FeatureCache:
    """Features of images on disk, looked up by the image's path: reading works in any number of processes.

    `autocast` is the precision that the run's autocast computes in, None where it has none. Raises `UserError` for an
    encoder that is trained, and for a folder that cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        tower: CustomVisionTower,
        image_processor: CustomVisionImageProcessor,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not tower.encoder_is_frozen:
            raise UserError(
                "--cache_vision_features keeps features of a frozen encoder, but this one is trained; "
                "set --tune_mm_vision False or leave the cache out"
            )
        self.autocast = autocast
        self.dtype = stored_dtype(tower, autocast)
        self.width = tower.config.hidden_size
        described = describe(tower, image_processor) | {"autocast": str(autocast), "dtype": str(self.dtype)}
        text = json.dumps(described, indent=2, sort_keys=True, default=list)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:FINGERPRINT_DIGITS]
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_whole(self.folder / "encoder.json") as unfinished:
                unfinished.write_text(text, encoding="utf-8")
            remove_abandoned(self.folder)
        # Of each shard that has been read from: the open file, and the checksums of its features.
        self._files: dict[str, tuple[Any, dict[str, str]]] = {}
        self._new_keys: dict[str, tuple[int, int, str]] = {}
        self.reload()

    def reload(self) -> None:
        """Read again what the folder holds, after this or another process has added to it."""
        self._shards: dict[str, Path] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            with _readable(shard), safe_open(shard, "pt") as file:
                self._shards.update(dict.fromkeys(file.keys(), shard))
        self._keys: dict[str, tuple[int, int, str]] = {}
        for known in sorted(self.folder.glob("*.paths.json")):
            with _readable(known):
                self._keys.update(_known_files(json.loads(known.read_text(encoding="utf-8"))))

    def __getstate__(self) -> dict:
        # Open files cannot be sent to a loader process; each opens its own.
        return {**self.__dict__, "_files": {}}

    def __contains__(self, path: str | Path) -> bool:
        return self.key(path) in self._shards

    def key(self, path: str | Path) -> str:
        """Return the SHA-256 of the file's content, from the list of known files if it has not changed since.

        Raises `UserError` for a file that cannot be read.
        """
        name = str(path)
        try:
            state = os.stat(path)
            known = self._keys.get(name)
            if known is None or known[:2] != (state.st_mtime_ns, state.st_size):
                known = (state.st_mtime_ns, state.st_size, hashlib.sha256(Path(path).read_bytes()).hexdigest())
                self._keys[name] = self._new_keys[name] = known
        except OSError as error:
            raise UserError(f"{path}: cannot read the file ({error.strerror})") from None
        return known[2]

    def keys(self, paths: Sequence[str | Path]) -> list[str]:
        """Return the keys of files, read by several threads; that of a file that cannot be read is its path."""
        chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
        with ThreadPoolExecutor(_THREADS) as pool:
            return [key for part in pool.map(lambda chunk: list(map(self._key_or_path, chunk)), chunks) for key in part]

    def _key_or_path(self, path: str | Path) -> str:
        try:
            return self.key(path)
        except UserError:
            return str(path)

    def load(self, path: str | Path) -> torch.Tensor:
        """Return the features (rows, columns, D_vis) of an image; raises `UserError` if they are missing or damaged."""
        key = self.key(path)
        shard = self._shards.get(key)
        if shard is None:
            raise UserError(
                f"{path}: no features of it in {self.folder}: it could not be read when the cache was filled, or it "
                "was changed since; correct the file and start again"
            )
        name = str(shard)
        with _readable(shard):
            if name not in self._files:
                file = safe_open(shard, "pt")
                self._files[name] = file, file.metadata() or {}
            file, checksums = self._files[name]
            features = file.get_tensor(key)
            self._check(features, checksums.get(key))
        return features

    def _check(self, features: torch.Tensor, checksum: str | None) -> None:
        """Raise `ValueError` if these are no features, or not those that were written; old files have no checksums."""
        if features.ndim != 3 or features.shape[-1] != self.width or features.dtype != self.dtype:
            found = f"{tuple(features.shape)} of {features.dtype}"
            raise ValueError(f"it holds {found}, expected (rows, columns, {self.width}) of {self.dtype}")
        if checksum is not None and checksum != _checksum(features):
            raise ValueError("its features do not have the checksum that they were written with")

    def missing(self, paths: Sequence[str | Path]) -> dict[str, str]:
        """Return {key: path} of the images that have no features yet, each content once, in the order given."""
        absent: dict[str, str] = {}
        for key, path in zip(self.keys(paths), paths, strict=True):
            if key not in self._shards:
                absent.setdefault(key, str(path))
        return absent

    def write(self, features: dict[str, torch.Tensor]) -> None:
        """Add one shard, whole or not at all: {key: (rows, columns, D_vis)}; raises `UserError` if it cannot."""
        # Other processes, and other runs, may be adding to the same folder.
        target = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with _written_whole(target) as unfinished:
            whole = {key: tensor.contiguous() for key, tensor in features.items()}
            save_file(whole, unfinished, {key: _checksum(tensor) for key, tensor in whole.items()})

    def write_known_files(self) -> None:
        """Keep the keys of the files that this process has read, so that a later run need not read them."""
        if self._new_keys:
            with _written_whole(self.folder / f"{uuid.uuid4().hex}.paths.json") as unfinished:
                unfinished.write_text(json.dumps(self._new_keys), encoding="utf-8")
        self._new_keys = {}


def stored_dtype(tower: CustomVisionTower, autocast: torch.dtype | None) -> torch.dtype:
    """Return the precision in which the tower's merger takes features: to keep more would take room for nothing."""
    if autocast is not None and tower.config.merger in LINEAR_FIRST_MERGERS:
        return autocast
    return tower.merger.proj.weight.dtype


def estimate_bytes(
    sizes: Iterable[tuple[int, int]],
    tower: CustomVisionTower,
    image_processor: CustomVisionImageProcessor,
    autocast: torch.dtype | None = None,
) -> int:
    """Return the bytes that features of images of these sizes, (height, width) in pixels, take on disk."""
    # Many images share few sizes.
    counts = Counter(tuple(size) for size in sizes)
    tokens = sum(image_processor.get_number_of_image_patches(*size) * count for size, count in counts.items())
    return tokens * tower.config.hidden_size * stored_dtype(tower, autocast).itemsize


def describe(tower: CustomVisionTower, image_processor: CustomVisionImageProcessor) -> dict[str, Any]:
    """Return what decides the features of an image: encoder, weights, code, preprocessing, libraries."""
    # PEFT wraps a frozen encoder that a checkpoint is to hold; both copies in it are the same.
    encoder = getattr(tower.encoder, "original_module", tower.encoder)
    official = image_processor.official
    return {name: getattr(tower.config, name) for name in CONFIGURED} | {
        "format": FORMAT,
        "weights": weights_hash(encoder),
        "code": _code_hashes(encoder),
        "geometry": image_processor.geometry,
        "official": None if official is None else {name: official[name] for name in official if name != "size"},
        "limits": dict(image_processor.size) if image_processor.takes_pixel_limits else None,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _code_hashes(encoder: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every file that defines a class of which the encoder is made, by the module's name."""
    names = {parent.__module__ for module in encoder.modules() for parent in type(module).__mro__}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what to do about a file of the cache that cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: this file of cached features cannot be read ({_reason(error)}); remove it, or the whole folder, "
            "and start again: what is missing is computed anew"
        ) from None


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Say what to do about a folder that cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--cache_vision_features: cannot write in {folder} ({_reason(error)}); give a folder of a disk with "
            "enough room, or train without the cache"
        ) from None


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Give the path of an unfinished file that becomes the target, as `written_whole`; say what to do if it cannot."""
    with _writable(target.parent), written_whole(target) as unfinished:
        yield unfinished


def _checksum(tensor: torch.Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.flatten().view(torch.uint8).numpy()):08x}"


def _known_files(entries: Any) -> dict[str, tuple[int, int, str]]:
    """Check what a list of known files holds: {path: [time, length, SHA-256]}; raises `ValueError`."""
    if not isinstance(entries, dict):
        raise ValueError(f"it holds a {type(entries).__name__}, expected an object")
    for path, entry in entries.items():
        kinds = [type(value) for value in entry] if isinstance(entry, list) else None
        if kinds != [int, int, str] or not _SHA256.fullmatch(entry[2]):
            raise ValueError(f"its entry for {path} is no time, length and SHA-256")
    return {path: tuple(entry) for path, entry in entries.items()}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())

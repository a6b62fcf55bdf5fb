"""Store a frozen encoder's features on disk and look them up by the content of an image's file.

A cached image is a tensor (rows, columns, D_vis), which the image processor takes instead of the image. Features are
stored in DIR/<fingerprint>/*.safetensors under the SHA-256 of the image's file. The fingerprint covers everything that
determines the features, so those of another encoder or another preprocessing are never read.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from qwenvl.errors import UserError
from qwenvl.utils.files import remove_abandoned, written_whole
from qwenvl.utils.parallel import in_threads
from qwenvl.vision.encoder import weights_hash
from qwenvl.vision.options import FEATURE_OPTIONS
from qwenvl.vision.processing import CustomVisionImageProcessor
from qwenvl.vision.tower import CustomVisionTower

# Increase it when this package reads or prepares images differently, so that older features are not used.
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
# These start with a linear layer, whose input autocast casts to half precision anyway.
LINEAR_FIRST_MERGERS = ("simple", "mlp2")
# Most files are known and need only an `os.stat`, which is too little work for a task of its own.
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
        # For each shard that has been read from: the open file and the checksums of its features.
        self._files: dict[str, tuple[Any, dict[str, str]]] = {}
        self._new_keys: dict[str, tuple[int, int, str]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the contents of the folder again, after this or another process has added to it."""
        self._shards: dict[str, Path] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            with _readable(shard), safe_open(shard, "pt") as file:
                self._shards.update(dict.fromkeys(file.keys(), shard))
        self._keys: dict[str, tuple[int, int, str]] = {}
        for known in sorted(self.folder.glob("*.paths.json")):
            with _readable(known):
                self._keys.update(_known_files(json.loads(known.read_text(encoding="utf-8"))))

    def __getstate__(self) -> dict:
        # Open files cannot be sent to a loader process; each process opens its own.
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
        return list(in_threads(self._key_or_path, paths, chunk_size=_CHUNK))

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
                f"{path}: it has no features in {self.folder}: it could not be read when the cache was filled, or it "
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
        """Raise `ValueError` for features of another kind or with another checksum; old files have no checksums."""
        if features.ndim != 3 or features.shape[-1] != self.width or features.dtype != self.dtype:
            found = f"{tuple(features.shape)} of {features.dtype}"
            raise ValueError(f"it holds {found}, expected (rows, columns, {self.width}) of {self.dtype}")
        if checksum is not None and checksum != _checksum(features):
            raise ValueError("its features do not have the checksum that they were written with")

    def missing(self, paths: Sequence[str | Path]) -> dict[str, str]:
        """Return {key: path} of the images that have no features yet, in the order given, without duplicates."""
        absent: dict[str, str] = {}
        for key, path in zip(self.keys(paths), paths, strict=True):
            if key not in self._shards:
                absent.setdefault(key, str(path))
        return absent

    def write(self, features: dict[str, torch.Tensor]) -> None:
        """Add one shard of {key: features (rows, columns, D_vis)} atomically; raises `UserError` if it cannot."""
        # Other processes, and other runs, may be adding to the same folder.
        target = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with _written_whole(target) as unfinished:
            whole = {key: tensor.contiguous() for key, tensor in features.items()}
            save_file(whole, unfinished, {key: _checksum(tensor) for key, tensor in whole.items()})

    def write_known_files(self) -> None:
        """Store the keys of the files that this process has hashed, so that a later run need not hash them."""
        if self._new_keys:
            with _written_whole(self.folder / f"{uuid.uuid4().hex}.paths.json") as unfinished:
                unfinished.write_text(json.dumps(self._new_keys), encoding="utf-8")
        self._new_keys = {}


def stored_dtype(tower: CustomVisionTower, autocast: torch.dtype | None) -> torch.dtype:
    """Return the precision in which the tower's merger takes features; a higher one would only use more disk space."""
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
    # Many images share a few sizes.
    counts = Counter(tuple(size) for size in sizes)
    tokens = sum(image_processor.get_number_of_image_patches(*size) * count for size, count in counts.items())
    return tokens * tower.config.hidden_size * stored_dtype(tower, autocast).itemsize


def describe(tower: CustomVisionTower, image_processor: CustomVisionImageProcessor) -> dict[str, Any]:
    """Return everything that determines the features: encoder, weights, code, preprocessing, libraries."""
    # PEFT wraps a frozen encoder that is saved with the checkpoint; both copies in the wrapper are equal.
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
    """Return {module: SHA-256 of its file} of the modules that define the classes of the encoder and its layers."""
    names = {parent.__module__ for module in encoder.modules() for parent in type(module).__mro__}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names}
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise `UserError` with a remedy if a file of the cache cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: this file of cached features cannot be read ({_reason(error)}); remove it, or the whole folder, "
            "and start again: missing features are computed again"
        ) from None


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Raise `UserError` with a remedy if a folder cannot be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--cache_vision_features: cannot write to {folder} ({_reason(error)}); give a folder on a disk with "
            "enough space, or train without the cache"
        ) from None


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """Write a file as `written_whole` does; raises `UserError` with a remedy if it cannot."""
    with _writable(target.parent), written_whole(target) as unfinished:
        yield unfinished


def _checksum(tensor: torch.Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.flatten().view(torch.uint8).numpy()):08x}"


def _known_files(entries: Any) -> dict[str, tuple[int, int, str]]:
    """Check the entries {path: [time, length, SHA-256]} of a list of known files; raises `ValueError`."""
    if not isinstance(entries, dict):
        raise ValueError(f"it holds a {type(entries).__name__}, expected an object")
    for path, entry in entries.items():
        kinds = [type(value) for value in entry] if isinstance(entry, list) else None
        if kinds != [int, int, str] or not _SHA256.fullmatch(entry[2]):
            raise ValueError(f"its entry for {path} is not a time, a length and a SHA-256")
    return {path: tuple(entry) for path, entry in entries.items()}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())

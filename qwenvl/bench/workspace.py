"""Make the models, the encoder and the data that the suite trains with, in one folder."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from transformers import Dinov2Config, Dinov2Model

from qwenvl.bench.real_shape import build_real_shape
from qwenvl.bench.standin import build_standin, build_standin_encoder
from qwenvl.bench.synthetic_xrays import write_records, write_xrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """How large the images, reports and data are, how long the warm-up is, and flags that differ from the recipe."""

    side: int
    words: int
    num_records: int
    warmup_steps: int
    flags: Mapping[str, str] = field(default_factory=dict)


# With 12 words the samples have 537 tokens at the mean, within 10, in the stand-in's tokenizer. The warm-up is longer
# than what the data workers prepare while the first step is compiled.
_REAL = Scale(side=1000, words=12, num_records=16_000, warmup_steps=30)
_TINY = Scale(
    side=96,
    words=8,
    num_records=400,
    warmup_steps=2,
    flags={
        "bf16": "False",
        "torch_compile": "False",
        "model_max_length": "256",
        "max_pixels": "4096",
        "min_pixels": "1024",
        "dataloader_num_workers": "0",
        "logging_steps": "1",
    },
)


class Workspace:
    """The models, encoder and data of the suite in a folder, made where they are not there yet.

    `is_standin` puts small models and images in the place of the real ones, for tests without a GPU.
    """

    def __init__(self, folder: Path, *, is_standin: bool = False) -> None:
        self.folder, self.is_standin = folder, is_standin
        self.scale = _TINY if is_standin else _REAL
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, shape: str) -> Path:
        """Return a model of this shape with random weights."""
        if self.is_standin:
            return self._make("standin", build_standin)
        return self._make(shape, _build_in_own_process, shape)

    def encoder(self) -> Path:
        """Return an encoder of RAD-DINO's shape with random weights."""
        return self._make("encoder", build_standin_encoder if self.is_standin else _build_rad_dino)

    def dataset(self, num_records: int) -> Path:
        """Return the records of so many X-rays."""
        folder = self._make(f"xrays_{num_records}", self._write_dataset, num_records)
        return folder / "train.json"

    def _write_dataset(self, folder: Path, num_records: int) -> None:
        folder.mkdir()
        write_records(folder / "train.json", write_xrays(folder, num_records, self.scale.side), self.scale.words)

    def _make(self, name: str, build: Any, *arguments: Any) -> Path:
        target, unfinished = self.folder / name, self.folder / f"{name}.unfinished"
        if not target.exists():
            logger.info("making %s", target)
            shutil.rmtree(unfinished, ignore_errors=True)
            build(unfinished, *arguments)
            unfinished.rename(target)
        return target


def _build_in_own_process(folder: Path, shape: str) -> None:
    # The weights are drawn on the GPU, whose memory is free again when the process ends.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(build_real_shape, folder, shape).result()


def _build_rad_dino(folder: Path) -> None:
    Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(folder)

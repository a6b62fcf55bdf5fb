"""Draw synthetic X-rays and reports of realistic sizes for the benchmarks."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_VOCABULARY = 20_000
_NUM_DISTINCT = 100


def write_xrays(folder: Path, count: int, longest_side: int) -> list[str]:
    """Write `count` gray JPEG files with the aspect ratios of chest X-rays and return their names.

    Only 100 are encoded; the others are hard links to them, so that writing 100,000 takes seconds.
    """
    random = np.random.default_rng(0)
    names = [f"xray_{index:06d}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        if index >= _NUM_DISTINCT:
            os.link(folder / names[index % _NUM_DISTINCT], folder / name)
            continue
        short_side = int(longest_side * random.uniform(0.75, 1.0))
        # Smooth shadows with some grain compress about as well as an X-ray.
        shadows = Image.fromarray(random.integers(0, 255, (12, 12), dtype=np.uint8))
        pixels = np.asarray(shadows.resize((longest_side, short_side), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-6, 7, pixels.shape, dtype=np.int16)
        image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        image = image if random.random() < 0.5 else image.transpose(Image.Transpose.ROTATE_90)
        image.save(folder / name, quality=95)
    return names


def write_records(path: Path, names: list[str], words: int) -> None:
    """Write a record for each X-ray, with a report of about `words` words."""
    records = []
    for name, report in zip(names, draw_reports(len(names), words), strict=True):
        turns = [("human", "<image>\nWrite the findings and the impression of this X-ray."), ("gpt", report)]
        records.append({"image": name, "conversations": [{"from": role, "value": text} for role, text in turns]})
    path.write_text(json.dumps(records), encoding="utf-8")


def draw_reports(count: int, words: int) -> Iterator[str]:
    """Yield `count` reports of about `words` words, drawn by Zipf's law from a vocabulary of 20,000."""
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfpgvbyk"))
    vocabulary = ["".join(random.choice(letters, size)) for size in random.integers(2, 12, _VOCABULARY)]
    for _ in range(count):
        size = max(int(random.normal(words, words / 4)), 5)
        ranks = random.zipf(1.2, size) % _VOCABULARY
        yield " ".join([vocabulary[rank] for rank in ranks]) + "."

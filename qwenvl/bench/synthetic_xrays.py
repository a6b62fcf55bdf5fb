"""Draw the synthetic X-rays and reports that the benchmarks read, in natural proportions."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_VOCABULARY = 20_000
_DISTINCT_FILES = 100


def write_films(folder: Path, count: int, longest_side: int) -> list[str]:
    """Write `count` gray JPEG files with the aspect ratios of chest films and return their names.

    Only some are encoded, the others are hard links to them, so that 100,000 take seconds.
    """
    random = np.random.default_rng(0)
    names = [f"film_{index:06d}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        if index >= _DISTINCT_FILES:
            os.link(folder / names[index % _DISTINCT_FILES], folder / name)
            continue
        short_side = int(longest_side * random.uniform(0.75, 1.0))
        # Smooth shadows with some grain compress about as a film does.
        shadows = Image.fromarray(random.integers(0, 255, (12, 12), dtype=np.uint8))
        pixels = np.asarray(shadows.resize((longest_side, short_side), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-6, 7, pixels.shape, dtype=np.int16)
        film = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        film = film if random.random() < 0.5 else film.transpose(Image.Transpose.ROTATE_90)
        film.save(folder / name, quality=95)
    return names


def write_records(path: Path, names: list[str], words: int) -> None:
    """Write a record for each film, with a report of about so many words."""
    records = []
    for name, report in zip(names, draw_reports(len(names), words), strict=True):
        turns = [("human", "<image>\nWrite the findings and the impression of this film."), ("gpt", report)]
        records.append({"image": name, "conversations": [{"from": role, "value": text} for role, text in turns]})
    path.write_text(json.dumps(records), encoding="utf-8")


def draw_reports(count: int, words: int) -> Iterator[str]:
    """Yield reports of about so many words, drawn by Zipf's law from 20,000 words."""
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfpgvbyk"))
    vocabulary = ["".join(random.choice(letters, size)) for size in random.integers(2, 12, _VOCABULARY)]
    for _ in range(count):
        size = max(int(random.normal(words, words / 4)), 5)
        ranks = random.zipf(1.2, size) % _VOCABULARY
        yield " ".join([vocabulary[rank] for rank in ranks]) + "."

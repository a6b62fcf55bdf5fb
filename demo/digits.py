"""Write the digits dataset of the quick start: scikit-learn's 1,797 scans as PNG files with questions and answers."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 64  # pixels a side: 16 patches, which become 4 tokens
NUM_HELD_OUT = 297
QUESTION = "Which digit is written in this image?"


class DigitFiles(NamedTuple):
    """The two annotation files; their image paths are relative to their folder."""

    train: Path
    held_out: Path


def write_digits(folder: str | Path, *, seed: int = 0) -> DigitFiles:
    """Write each scan as a PNG; split them by `seed` into 1,500 for training and 297 held out."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    scans = enumerate(zip(digits.images, digits.target, strict=True))
    records = [_write_record(folder, index, scan, label) for index, (scan, label) in scans]
    order = np.random.default_rng(seed).permutation(len(records))
    files = DigitFiles(folder / "digits_train.json", folder / "digits_held_out.json")
    _write_json(files.train, [records[index] for index in order[NUM_HELD_OUT:]])
    _write_json(files.held_out, [records[index] for index in order[:NUM_HELD_OUT]])
    return files


def _write_record(folder: Path, index: int, scan: np.ndarray, label: int) -> dict:
    """Write one scan, (8, 8) with gray levels 0 to 16, as an enlarged image and return its record."""
    name = f"images/{index:04d}.png"
    image = Image.fromarray((scan * 255 / 16).astype(np.uint8))
    image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / name)
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": str(label)}]
    return {"image": name, "conversations": turns}


def _write_json(path: Path, records: list[dict]) -> None:
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write the digits from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where to write the images and the two annotation files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    arguments = parser.parse_args()
    for path in write_digits(arguments.folder, seed=arguments.seed):
        print(path)


if __name__ == "__main__":
    main()

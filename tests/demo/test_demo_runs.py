"""Tests that the demo annotation files train through the ordinary entry point."""

import json
from pathlib import Path

import pytest

from qwenvl.train.train_qwen import train

DEMO = Path(__file__).resolve().parents[2] / "demo"
FLAGS = (
    "--tune_mm_llm True --tune_mm_mlp True --lora_enable True --lora_r 4 --learning_rate 2e-3 --mm_projector_lr 2e-3 "
    "--model_max_length 2048 --data_packing True --max_pixels 65536 --min_pixels 1024 --video_max_pixels 131072 "
    "--video_min_pixels 4096 --num_train_epochs 3 "
    "--save_strategy no --report_to none --disable_tqdm True --use_cpu True"
)


@pytest.mark.parametrize("name", ["single_images.json", "video.json"])
def test_demo_files_train_through_the_ordinary_entry_point(name: str, standin: Path, tmp_path: Path):
    paths = ["--model_name_or_path", str(standin), "--dataset_use", str(DEMO / name), "--output_dir", str(tmp_path)]
    train([*paths, *FLAGS.split()])
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) >= 3
    assert losses[-1] < losses[0]

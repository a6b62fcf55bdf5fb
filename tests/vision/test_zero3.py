"""The swap where DeepSpeed ZeRO-3 has partitioned the base model, on one CPU process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from qwenvl.vision.registry import build_encoder, resolve_encoder
from tests.vision.small_encoders import SMALL_ENCODERS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
import deepspeed, torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from tests.vision.small_encoders import TowerOptions, ask, random_image, swap

deepspeed.init_distributed("gloo")
settings = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}
settings["zero_allow_untested_optimizer"] = True
known_to_transformers = HfDeepSpeedConfig(settings)
model, processor = swap(sys.argv[1], TowerOptions("rad_dino", path=sys.argv[2]))
assert all(hasattr(parameter, "ds_id") for parameter in model.model.language_model.parameters())
model.model.language_model.requires_grad_(False)
optimizer = torch.optim.SGD(model.model.visual.merger.parameters(), lr=0.1)
engine, *_ = deepspeed.initialize(model=model, config=settings, optimizer=optimizer)
inputs = ask(processor, [random_image(40, 64)])
losses = []
for _ in range(3):
    loss = engine(**inputs, labels=inputs["input_ids"]).loss
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
print("trained")
"""


def test_encoder_with_weights_is_swapped_in_and_the_merger_trains(standin, tmp_path):
    build_encoder(resolve_encoder("rad_dino", config=SMALL_ENCODERS["rad_dino"])).model.save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **{"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)},
    }
    command = [sys.executable, "-c", PROGRAM, str(standin), str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "trained" in run.stdout, run.stderr[-3000:]

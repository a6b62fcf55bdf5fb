import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, ProcessorMixin

from qwenvl import load_checkpoint
from tests.train.conftest import losses

Run = Callable[..., Path]


def logits_of(model: torch.nn.Module, processor: ProcessorMixin, media: Path) -> torch.Tensor:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with Image.open(media / "wide.png") as image:
        inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_an_adapter_loads_alike_by_us_and_by_plain_peft(run_training: Run, standin: Path, media: Path) -> None:
    folder = run_training()

    model, processor = load_checkpoint(folder, device="cpu")
    ours = logits_of(model, processor, media)
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(standin), folder)

    torch.testing.assert_close(logits_of(plain, processor, media), ours, rtol=0, atol=0)
    untrained = AutoModelForImageTextToText.from_pretrained(standin)
    assert (logits_of(untrained, processor, media) - ours).abs().max() > 1e-3


def test_a_fully_tuned_model_is_a_plain_transformers_folder(run_training: Run, media: Path) -> None:
    folder = run_training(lora_enable=False)

    model, processor = load_checkpoint(folder, device="cpu")

    plain = AutoModelForImageTextToText.from_pretrained(folder)
    torch.testing.assert_close(logits_of(plain, processor, media), logits_of(model, processor, media), rtol=0, atol=0)


def test_a_checkpoint_holds_the_same_model_as_the_output_folder(run_training: Run, media: Path) -> None:
    folder = run_training(save_strategy="steps", save_steps=3)

    last, final = (load_checkpoint(path, device="cpu") for path in (folder / "checkpoint-3", folder))

    torch.testing.assert_close(logits_of(*last, media), logits_of(*final, media), rtol=0, atol=0)


def test_the_processor_in_a_checkpoint_keeps_the_pixel_limits(run_training: Run) -> None:
    _, processor = load_checkpoint(run_training(max_pixels=4096), device="cpu")

    assert processor.image_processor.size["longest_edge"] == 4096


def test_the_arguments_of_the_run_are_in_every_checkpoint_without_secrets(run_training: Run) -> None:
    folder = run_training(save_strategy="steps", save_steps=3)

    for place in (folder, folder / "checkpoint-3"):
        recorded = json.loads((place / "run_arguments.json").read_text())
        assert recorded["lora_r"] == 4
        assert recorded["vision_prefix_tokens"] is False
        assert "hub_token" not in recorded
    assert not list(folder.rglob("training_args.bin"))


@pytest.mark.parametrize(
    "mode",
    [
        {"data_packing": True, "model_max_length": 160, "per_device_train_batch_size": 1},
        {"gradient_accumulation_steps": 2, "lora_dropout": 0.1},
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(run_training: Run, tmp_path: Path, mode: dict) -> None:
    flags = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "dataloader_num_workers": 2} | mode
    whole = run_training("whole", **flags)
    interrupted = tmp_path / "interrupted"
    shutil.copytree(whole / "checkpoint-3", interrupted / "checkpoint-3")

    resumed = run_training("interrupted", **flags, resume_from_checkpoint="auto")

    assert losses(resumed) == losses(whole)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_whole_checkpoints_are_in_the_output_folder(run_training: Run, tmp_path: Path) -> None:
    half_written = tmp_path / "run" / ".incomplete" / "checkpoint-7"
    half_written.mkdir(parents=True)
    (half_written / "adapter_model.safetensors").touch()

    folder = run_training(save_strategy="steps", save_steps=2, resume_from_checkpoint="auto")

    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert not (folder / ".incomplete").exists()
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_old_checkpoints_go_and_the_best_one_stays(run_training: Run, image_records: Path) -> None:
    folder = run_training(
        max_steps=6,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset_use=image_records,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        load_best_model_at_end=True,
    )

    state = json.loads((folder / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.parent == folder
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == sorted({best.name, "checkpoint-6"})
    kept, final = (load_file(place / "adapter_model.safetensors") for place in (best, folder))
    assert all(torch.equal(kept[name], final[name]) for name in kept)

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import AutoModelForImageTextToText

from qwenvl import load_checkpoint
from qwenvl.bench.standin import build_standin
from qwenvl.checkpoint.manifest import find_fault
from qwenvl.data.data_processor import DataModule
from qwenvl.errors import UserError
from qwenvl.model import attention, build
from qwenvl.model.attention import Attention
from qwenvl.train import argument, prepare
from qwenvl.train import run as run_module
from qwenvl.train.train_qwen import train
from qwenvl.train.trainer import QwenVLTrainer
from qwenvl.vision import native
from tests.train.conftest import RECIPE, command_line, conversation, losses, write_records
from tests.varlen import attend_within_samples

Run = Callable[..., Path]


def test_the_loss_falls_when_the_same_few_samples_are_learnt(run_training: Run) -> None:
    series = losses(run_training(max_steps=40, per_device_train_batch_size=6, learning_rate=1e-2))

    assert sum(series[-4:]) < 0.5 * sum(series[:4])


def test_the_merger_and_the_adapter_change_and_nothing_else(run_training: Run, standin: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(standin).state_dict()

    saved = load_file(run_training() / "adapter_model.safetensors")

    mergers = {name: tensor for name, tensor in saved.items() if "lora_" not in name}
    assert len(mergers) == sum("merger" in name for name in before)
    for name, tensor in mergers.items():
        assert not torch.equal(tensor, before[name.removeprefix("base_model.model.")]), name
    assert all(".language_model." in name for name in saved if "lora_" in name)
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)


def test_the_merger_alone_is_trained_and_saved_as_an_adapter(run_training: Run, standin: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(standin).state_dict()

    saved = load_file(run_training(lora_enable=False, tune_mm_llm=False) / "adapter_model.safetensors")

    assert {name.removeprefix("base_model.model.") for name in saved} == {name for name in before if "merger" in name}
    assert any(
        not torch.equal(tensor, before[name.removeprefix("base_model.model.")]) for name, tensor in saved.items()
    )


def test_the_merger_alone_is_trained_through_batches_without_an_image(run_training: Run) -> None:
    one_epoch = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1}

    assert len(losses(run_training(lora_enable=False, tune_mm_llm=False, **one_epoch))) == 12


def test_full_fine_tuning_changes_the_language_model_and_not_what_is_frozen(run_training: Run, standin: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(standin).state_dict()

    folder = run_training(lora_enable=False, tune_mm_mlp=False, mm_projector_lr=None)

    after = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "visual" not in name}


def test_the_vision_encoder_is_trained_when_asked(run_training: Run, standin: Path) -> None:
    before = AutoModelForImageTextToText.from_pretrained(standin).state_dict()

    saved = load_file(
        run_training(tune_mm_vision=True, vision_tower_lr=1e-3, per_device_train_batch_size=4)
        / "adapter_model.safetensors"
    )

    blocks = [name for name in saved if "visual.blocks" in name]
    assert len(blocks) == sum("visual.blocks" in name for name in before)
    assert any(not torch.equal(saved[name], before[name.removeprefix("base_model.model.")]) for name in blocks)


@pytest.mark.parametrize("mode", [{"data_flatten": True}, {"data_packing": True, "model_max_length": 160}])
def test_padded_and_flattened_batches_give_the_same_first_loss(run_training: Run, mode: dict) -> None:
    everything = {"per_device_train_batch_size": 12, "max_steps": 1}

    padded = losses(run_training("padded", **everything))
    flattened = losses(run_training("flattened", **everything | mode))

    assert flattened == pytest.approx(padded, rel=1e-5)


def test_evaluation_logs_loss_and_token_accuracy(run_training: Run, image_records: Path) -> None:
    output_dir = run_training(eval_dataset_use=image_records, eval_strategy="steps", eval_steps=2)

    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 3]
    assert all(0 <= entry["eval_token_accuracy"] <= 1 for entry in evaluated)


def test_evaluation_gives_the_training_loss_of_the_same_samples(run_training: Run, image_records: Path) -> None:
    output_dir = run_training(
        eval_dataset_use=image_records, eval_on_start=True, max_steps=1, per_device_train_batch_size=12
    )

    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    first_evaluation = next(entry["eval_loss"] for entry in history if "eval_loss" in entry)
    assert first_evaluation == pytest.approx(losses(output_dir)[0], rel=1e-5)


def test_images_normalized_on_the_device_give_the_losses_of_images_normalized_by_the_processor(
    train_here: Callable[..., QwenVLTrainer], image_records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def history(name: str) -> tuple[torch.dtype, list[tuple[float | None, float | None]]]:
        trainer = train_here(name, eval_dataset_use=image_records, eval_strategy="steps", eval_steps=1)
        image = trainer.train_dataset.encoder.blank_samples()["image"]["pixel_values"]
        return image.dtype, [(entry.get("loss"), entry.get("eval_loss")) for entry in trainer.state.log_history]

    dtype, on_device = history("on_device")
    monkeypatch.setattr(DataModule, "defer_normalization", lambda self: None)
    dtype_of_processor, by_processor = history("by_processor")
    assert (dtype, dtype_of_processor) == (torch.uint8, torch.float32)
    assert on_device == by_processor


def test_every_entry_of_the_log_tells_rates_norms_speed_padding_waiting_and_memory(run_training: Run) -> None:
    history = json.loads((run_training() / "trainer_state.json").read_text())["log_history"]

    entry = next(entry for entry in history if "loss" in entry)
    assert entry["learning_rate_merger"] == pytest.approx(1e-3)
    assert entry["learning_rate_llm"] == pytest.approx(2e-3)
    norms = (entry["grad_norm_merger"] ** 2 + entry["grad_norm_llm"] ** 2) ** 0.5
    assert norms == pytest.approx(entry["grad_norm"], rel=1e-4)
    assert entry["tokens_per_second"] > entry["samples_per_second"] > 0
    assert 0 <= entry["padding_share"] < 1
    assert 0 <= entry["data_wait_share"] <= 1
    assert entry["peak_memory_gib"] > 0


def test_the_log_goes_to_tensorboard_beside_the_checkpoints(run_training: Run) -> None:
    output_dir = run_training(report_to="tensorboard")

    assert list((output_dir / "runs").glob("*/events.out.tfevents.*"))


def test_a_dry_run_tells_the_plan_and_writes_no_model(run_training: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qwenvl"):
        output_dir = run_training(dry_run=True, data_packing=True)

    for word in ("merger", "steps per epoch", "tokens a step", "GPU memory"):
        assert word in caplog.text
    assert not (output_dir / "adapter_config.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(
    standin: Path, image_records: Path, tmp_path: Path
) -> None:
    flags = RECIPE | {"learning_rate": 1e30, "mm_projector_lr": 1e30, "max_grad_norm": 0, "max_steps": 20}

    with pytest.raises(ValueError, match=r"is not finite; samples of this step: \[.*\] \(.*images.json row"):
        train(command_line(model_name_or_path=standin, dataset_use=image_records, output_dir=tmp_path / "run", **flags))


def test_a_last_step_that_is_not_finite_is_found_before_its_model_is_published(
    train_here: Callable[..., QwenVLTrainer], tmp_path: Path
) -> None:
    diverges = {"learning_rate": 1e30, "mm_projector_lr": 1e30, "max_grad_norm": 0}
    silent = {"logging_strategy": "no", "save_strategy": "no"}  # nothing else reads what the last step gave
    with pytest.raises(UserError, match=r"step \d+: ") as error:
        train_here("found", **diverges, max_steps=20)
    last = int(str(error.value).split(":")[0].removeprefix("step "))

    with pytest.raises(UserError, match=f"step {last}: .* is not finite"):
        train_here("last", **diverges, **silent, max_steps=last)

    assert not list((tmp_path / "last").glob("*.safetensors"))


@pytest.mark.parametrize("variant", [{"moe": True}, {"thinking": True}, {"tie_word_embeddings": False}], ids=str)
def test_every_kind_of_qwen3_vl_is_trained_as_its_configuration_says(
    run_training: Run, tmp_path: Path, variant: dict
) -> None:
    # The folder's name says another kind: the configuration decides.
    base = build_standin(tmp_path / "qwen2.5-vl-dense", **variant)

    folder = run_training(model_name_or_path=base, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=6)

    assert losses(folder)[-1] < 0.8 * losses(folder)[0]
    model, _ = load_checkpoint(folder, device="cpu")
    assert model.config.model_type == ("qwen3_vl_moe" if "moe" in variant else "qwen3_vl")


def test_videos_are_trained_on_beside_images(run_training: Run, media: Path) -> None:
    records = [
        conversation("<video>\nWhat happens?", "A ball moves.", video="clip.mp4"),
        conversation("<image>\n<video>\nCompare.", "A circle and a ball.", image="red.png", video="clip.mp4"),
    ]
    path = write_records(media / "videos.json", records)

    limits = {"video_max_pixels": 32768, "video_min_pixels": 4096}
    series = losses(run_training(dataset_use=path, max_steps=15, learning_rate=1e-2, data_flatten=True, **limits))

    assert series[-1] < 0.8 * series[0]


def test_compiled_layers_train_and_save_as_the_others_do(
    run_training: Run,
    train_here: Callable[..., QwenVLTrainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = []
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **kwargs: (compiled.append(module), compile_module(module, **kwargs))
    )
    flags = {"data_packing": True, "gradient_checkpointing": True, "learning_rate": 1e-2}
    plain = run_training("plain", **flags)
    assert not compiled

    trainer = train_here("compiled", **flags, torch_compile=True, torch_compile_backend="eager")
    folder = tmp_path / "compiled"

    assert trainer.accelerator.state.dynamo_plugin.backend == "NO"
    # The official encoder's layers would be recompiled for each number of images.
    assert {type(module).__name__ for module in compiled} == {"Qwen3VLTextDecoderLayer"}
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-4)
    saved, expected = (load_file(path / "adapter_model.safetensors") for path in (folder, plain))
    assert saved.keys() == expected.keys()


@pytest.mark.parametrize("tune_mm_vision", [False, True])
def test_compiled_layers_of_text_and_images_are_not_compiled_again_for_other_lengths(
    run_training: Run,
    media: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune_mm_vision: bool,
) -> None:
    for module in (argument, build, prepare):
        monkeypatch.setattr(module, "resolve_attention", lambda *_: Attention("varlen", "the kernel is replaced"))
    for module in (attention, native):
        monkeypatch.setattr(module, "varlen_attn", attend_within_samples)
    graphs, shapes = [], set()
    step = QwenVLTrainer.training_step

    def counted(trainer: QwenVLTrainer, model: torch.nn.Module, inputs: dict, count: torch.Tensor) -> torch.Tensor:
        loss = step(trainer, model, inputs, count)
        graphs.append(counters["stats"]["unique_graphs"])
        layout = inputs["layouts"]["image"]
        lengths = (inputs["input_ids"].numel(), inputs["text_max_seqlen"], len(inputs["text_cu_seqlens"]))
        shapes.add((*lengths, len(inputs["targets"]), len(layout["positions"]), layout["max_seqlen"]))
        return loss

    monkeypatch.setattr(QwenVLTrainer, "training_step", counted)
    images = ["red.png", "wide.png", "tall.png", "grey.png"] * 5
    records = [conversation("<image>\nWhat?", "A" * (7 * i % 31 + 1), image=name) for i, name in enumerate(images)]
    path = write_records(media / "lengths.json", records)
    flags = {"data_packing": True, "model_max_length": 200, "per_device_train_batch_size": 1, "max_steps": 9}
    torch.compiler.reset()
    counters.clear()

    run_training(
        dataset_use=path, torch_compile=True, torch_compile_backend="aot_eager", tune_mm_vision=tune_mm_vision, **flags
    )

    assert len(shapes) >= 5
    # The loss of a piece, a text layer, and a vision block.
    assert graphs[0] >= 3
    assert graphs == [graphs[0]] * 9


@pytest.mark.parametrize("logging_steps", [1, 3, 10])
def test_the_closing_speed_counts_every_sample_whether_its_step_was_logged_or_not(
    run_training: Run, logging_steps: int
) -> None:
    folder = run_training(max_steps=4, logging_steps=logging_steps)

    last = json.loads((folder / "trainer_state.json").read_text())["log_history"][-1]
    assert last["train_samples_per_second"] * last["train_runtime"] == pytest.approx(8, rel=0.01)


def test_a_dry_run_warns_of_few_steps_and_of_steps_that_would_not_be_logged(
    train_here: Callable[..., QwenVLTrainer | None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="qwenvl")

    train_here(dry_run=True, max_steps=-1, num_train_epochs=1, logging_steps=10)

    assert "this run has only 6 steps, and several hundred are usual: raise --num_train_epochs" in caplog.text
    assert "--logging_steps 10 exceeds the run's 6: each step is logged" in caplog.text


@pytest.mark.parametrize("doing", ["train", "evaluate"])
def test_a_data_worker_that_dies_ends_the_run_in_one_line(
    run_training: Run, image_records: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(QwenVLTrainer, doing, die)
    with pytest.raises(UserError, match=r"a data worker \(pid 7\) was ended by a signal \(Killed\)"):
        run_training("run", eval_dataset_use=image_records, max_steps=1)


@pytest.mark.parametrize("moment", ["publish_files", "evaluate"])
def test_sigterm_after_the_last_step_ends_well_with_the_model_published(
    run_training: Run,
    image_records: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: str,
) -> None:
    caplog.set_level(logging.INFO, logger="qwenvl")
    owner = QwenVLTrainer if moment == "evaluate" else run_module
    original = getattr(owner, moment)

    def with_signal(*args: object, **kwargs: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, moment, with_signal)
    before = signal.getsignal(signal.SIGTERM)
    try:
        folder = run_training("run", eval_dataset_use=image_records, max_steps=1)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert find_fault(folder, for_resume=False) is None
    assert "eval_loss" not in (folder / "trainer_state.json").read_text()
    assert "stopped by SIGTERM: the last step is trained and saved, but not evaluated" in caplog.text


def test_no_warning_of_a_deprecated_name_heads_a_run(run_training: Run, recwarn: pytest.WarningsRecorder) -> None:
    run_training("run", gradient_checkpointing=True, dry_run=True)
    assert [each for each in recwarn if issubclass(each.category, FutureWarning)] == []

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from qwenvl import load_checkpoint
from qwenvl.bench.standin import build_standin
from qwenvl.errors import UserError
from qwenvl.train.trainer import QwenVLTrainer
from tests.train.conftest import conversation, losses, write_records
from tests.train.test_checkpoint import logits_of

Run = Callable[..., Path]
Train = Callable[..., QwenVLTrainer | None]
TRAINED_ENCODER = {"tune_mm_vision": True, "vision_tower_lr": 1e-3}
# Its weights are in no file: they are those that its class draws.
OWN_ENCODER = {
    "custom_vision_encoder": f"{Path(__file__).with_name('own_encoder.py')}:TileEncoder",
    "custom_vision_pretrained_path": None,
}


def copied_with_other_weights(encoder: Path, place: Path, seed: int = 1) -> Path:
    """Write an encoder of the same configuration with weights of its own, and return its folder."""
    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config.from_pretrained(encoder)).save_pretrained(place)
    return place


def assert_loads_as_trained(trained: QwenVLTrainer, folder: Path, media: Path) -> None:
    """Load a folder, in another state of the random generator, and compare its logits with the trained model's."""
    torch.manual_seed(5)
    model, processor = load_checkpoint(folder, device="cpu", trust_remote_code=True)
    expected, found = (logits_of(each, processor, media) for each in (trained.model, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Dinov2 with random weights, in the layout of microsoft/rad-dino."""
    folder = tmp_path_factory.mktemp("encoders") / "rad-dino"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def swap(encoder: Path) -> dict:
    """Return the flags that swap the encoder; pixel limits are the encoder's own."""
    return {
        "custom_vision_encoder": "rad_dino",
        "custom_vision_pretrained_path": encoder,
        "max_pixels": None,
        "min_pixels": None,
    }


def test_only_the_merger_and_the_adapter_are_trained_and_saved(run_training: Run, swap: dict) -> None:
    saved = load_file(run_training(**swap) / "adapter_model.safetensors")

    whole = {name for name in saved if "lora_" not in name}
    assert whole == {f"base_model.model.model.visual.merger.proj.{kind}" for kind in ("weight", "bias")}
    assert all(".language_model." in name for name in saved if "lora_" in name)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"custom_vision_input": "qwen"},
        {"vision_layer": -2, "vision_prefix_tokens": True, "vision_merger": "mlp2"},
        {"tune_mm_vision": True, "vision_tower_lr": 1e-3},
        {"save_encoder": True},
        {"lora_enable": False},
        {"lora_enable": False, "tune_mm_llm": False},
        OWN_ENCODER,
        OWN_ENCODER | {"lora_enable": False, "tune_mm_llm": False},
        OWN_ENCODER | {"tune_mm_vision": True, "vision_tower_lr": 1e-3},
    ],
    ids=str,
)
def test_a_checkpoint_rebuilds_the_trained_model_without_any_flag(
    train_here: Train, swap: dict, media: Path, tmp_path: Path, flags: dict
) -> None:
    if flags.get("custom_vision_input") == "qwen":
        swap = swap | {"max_pixels": 16384, "min_pixels": 1024}

    trained = train_here("run", **swap | flags, save_strategy="steps", save_steps=3)

    assert_loads_as_trained(trained, tmp_path / "run", media)
    assert_loads_as_trained(trained, tmp_path / "run" / "checkpoint-3", media)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["vision_config"]["deepstack_visual_indexes"] == []


def test_a_frozen_merger_of_another_run_is_in_the_checkpoint(
    train_here: Train, run_training: Run, swap: dict, media: Path, tmp_path: Path
) -> None:
    stage_one = run_training("one", **swap, tune_mm_llm=False, lora_enable=False)
    frozen = {"tune_mm_mlp": False, "mm_projector_lr": None, "vision_merger_path": stage_one}

    trained = train_here("two", **swap, **frozen)

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (stage_one, tmp_path / "two"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert_loads_as_trained(trained, tmp_path / "two", media)


def test_a_frozen_encoder_is_named_and_its_weights_are_checked(
    run_training: Run, swap: dict, encoder: Path, tmp_path: Path
) -> None:
    folder = run_training(**swap)
    vision_config = json.loads((folder / "config.json").read_text())["vision_config"]
    assert vision_config["encoder_weights"] == str(encoder)
    assert not any(".encoder." in name for name in load_file(folder / "adapter_model.safetensors"))

    vision_config["encoder_weights"] = str(copied_with_other_weights(encoder, tmp_path / "other"))
    whole = json.loads((folder / "config.json").read_text()) | {"vision_config": vision_config}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "manifest.json").unlink()

    with pytest.raises(UserError, match="not the weights that the tower was trained with"):
        load_checkpoint(folder, device="cpu")


def test_a_checkpoint_with_the_encoder_needs_its_source_no_more(
    run_training: Run, swap: dict, encoder: Path, media: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    encoder_copy = tmp_path / "encoder"
    encoder_copy.mkdir()
    for path in encoder.iterdir():
        (encoder_copy / path.name).write_bytes(path.read_bytes())
    folder = run_training(**swap | {"custom_vision_pretrained_path": encoder_copy, "save_encoder": True})
    before = logits_of(*load_checkpoint(folder, device="cpu"), media)

    encoder_copy.rename(moved)

    torch.testing.assert_close(logits_of(*load_checkpoint(folder, device="cpu"), media), before, rtol=0, atol=0)


def test_parameters_that_no_gradient_reaches_stay_frozen_and_the_run_goes_on(run_training: Run, swap: dict) -> None:
    folder = run_training(**swap, tune_mm_vision=True, vision_tower_lr=1e-3, vision_layer=-2, max_steps=4)

    saved = load_file(folder / "adapter_model.safetensors")
    assert any(".visual.encoder." in name for name in saved)
    assert len(losses(folder)) == 4


@pytest.mark.parametrize(
    "flags", [{}, {"tune_mm_vision": True, "vision_tower_lr": 1e-3}, {"save_encoder": True}], ids=str
)
def test_a_resumed_run_with_a_custom_encoder_repeats_the_uninterrupted_one(
    run_training: Run, swap: dict, tmp_path: Path, flags: dict
) -> None:
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "data_packing": True} | flags
    whole = run_training("whole", **swap, **steps)
    (tmp_path / "interrupted").mkdir()
    (whole / "checkpoint-2").rename(tmp_path / "interrupted" / "checkpoint-2")

    resumed = run_training("interrupted", **swap, **steps, resume_from_checkpoint="auto")

    assert losses(resumed) == losses(whole)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_stage_two_starts_from_the_merger_of_stage_one(run_training: Run, swap: dict) -> None:
    stage_one = run_training("one", **swap, tune_mm_llm=False, lora_enable=False)

    stage_two = run_training("two", **swap, vision_merger_path=stage_one, max_steps=1, mm_projector_lr=0.0)

    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (stage_one, stage_two))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any("lora_" in name for name in second)


def test_stage_two_takes_the_encoder_that_stage_one_trained(
    train_here: Train, run_training: Run, swap: dict, media: Path, tmp_path: Path
) -> None:
    stage_one = run_training("one", **swap | TRAINED_ENCODER, tune_mm_llm=False, lora_enable=False)

    trained = train_here("two", **swap, vision_merger_path=stage_one)

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (stage_one, tmp_path / "two"))
    encoder = {name for name in before if ".visual.encoder." in name}
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert_loads_as_trained(trained, tmp_path / "two", media)


@pytest.mark.parametrize(
    "other",
    [
        {"custom_vision_encoder": "dinov2"},
        {"vision_layer": -2},
        {"vision_final_norm": False},
        {"vision_prefix_tokens": True},
        {"weights": "other"},
    ],
)
def test_stage_two_refuses_the_merger_of_another_encoder(
    run_training: Run, swap: dict, encoder: Path, tmp_path: Path, other: dict
) -> None:
    stage_one = run_training("one", **swap, tune_mm_llm=False, lora_enable=False)
    if other.pop("weights", None):
        other = {"custom_vision_pretrained_path": copied_with_other_weights(encoder, tmp_path / "encoder")}

    with pytest.raises(UserError, match="its merger was trained with"):
        run_training("two", **swap | other, vision_merger_path=stage_one)


def test_a_run_is_not_resumed_with_other_weights_of_its_encoder(
    run_training: Run, swap: dict, encoder: Path, tmp_path: Path
) -> None:
    place = copied_with_other_weights(encoder, tmp_path / "encoder")
    flags = swap | {"custom_vision_pretrained_path": place, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    folder = run_training("run", **flags)
    (folder / "adapter_config.json").unlink()
    copied_with_other_weights(encoder, place, seed=2)

    with pytest.raises(UserError, match="encoder's weights at .* are not those of that run"):
        run_training("run", **flags, resume_from_checkpoint=folder / "checkpoint-1")


def test_a_checkpoint_finds_its_encoder_from_any_folder_and_where_it_has_moved(
    train_here: Train, swap: dict, encoder: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copied_with_other_weights(encoder, tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    trained = train_here("run", **swap | {"custom_vision_pretrained_path": "encoder"})
    monkeypatch.chdir(media)
    assert_loads_as_trained(trained, tmp_path / "run", media)

    moved = place.rename(tmp_path / "moved")

    with pytest.raises(UserError, match="pass its new path to load_checkpoint as encoder_path"):
        load_checkpoint(tmp_path / "run", device="cpu")
    model, processor = load_checkpoint(tmp_path / "run", device="cpu", encoder_path=str(moved))
    expected, found = (logits_of(each, processor, media) for each in (trained.model, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_self_written_encoder_is_built_again_with_the_arguments_of_its_time(
    train_here: Train, swap: dict, media: Path, tmp_path: Path
) -> None:
    source = tmp_path / "my_encoder.py"
    source.write_text(Path(__file__).with_name("own_encoder.py").read_text())
    trained = train_here("run", **swap | OWN_ENCODER | {"custom_vision_encoder": f"{source}:TileEncoder"})

    assert json.loads((tmp_path / "run" / "config.json").read_text())["vision_config"]["encoder_config"] == {
        "hidden_size": 24
    }
    module = sys.modules[type(trained.model.get_base_model().model.visual.encoder.original_module).__module__]
    module.TileEncoder.__init__.__defaults__ = (32,)
    assert_loads_as_trained(trained, tmp_path / "run", media)


@pytest.mark.parametrize("flags", [{}, TRAINED_ENCODER], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", ["NormedEncoder", "FourierEncoder"])
def test_an_encoder_that_half_precision_is_not_made_for_trains_in_bf16_and_loads(
    run_training: Run, swap: dict, media: Path, kind: str, flags: dict
) -> None:
    own = OWN_ENCODER["custom_vision_encoder"].replace("TileEncoder", kind)

    folder = run_training(**swap | OWN_ENCODER | {"custom_vision_encoder": own} | flags, bf16=True, max_steps=2)

    assert all(map(math.isfinite, losses(folder)))
    model, processor = load_checkpoint(folder, device="cpu", trust_remote_code=True)
    assert logits_of(model, processor, media).isfinite().all()
    if kind == "FourierEncoder":
        saved = load_file(folder / "adapter_model.safetensors")["base_model.model.model.visual.encoder.filter"]
        assert saved.is_complex() and bool(saved.imag.any()) == bool(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mm_projector_lr": 1e-5}, "a learning rate of 1e-05 hardly moves it; give --mm_projector_lr 2e-05 or more"),
        ({"mm_projector_lr": None, "learning_rate": 1e-6}, "a learning rate of 1e-06 hardly moves it"),
        ({"mm_projector_lr": 2e-5}, None),
        ({"mm_projector_lr": 1e-6, "custom_vision_encoder": None, "custom_vision_pretrained_path": None}, None),
    ],
    ids=str,
)
def test_a_rate_that_leaves_a_fresh_merger_where_it_began_is_reported(
    run_training: Run, swap: dict, caplog: pytest.LogCaptureFixture, flags: dict, message: str | None
) -> None:
    with caplog.at_level("WARNING", logger="qwenvl"):
        run_training(**swap | flags, dry_run=True)

    assert caplog.text.count("the merger of rad_dino starts at random") == (message is not None)
    assert (message or "") in caplog.text


def test_lora_stays_out_of_an_encoder_whose_layers_are_called_as_the_language_models(
    run_training: Run, swap: dict
) -> None:
    saved = load_file(
        run_training(**swap | OWN_ENCODER, lora_target_modules="all-linear") / "adapter_model.safetensors"
    )

    adapted = [name for name in saved if "lora_" in name]
    assert adapted
    assert not any(".visual." in name for name in adapted)


def test_a_module_that_peft_would_take_for_the_merger_is_refused_by_name(run_training: Run, swap: dict) -> None:
    nested = OWN_ENCODER["custom_vision_encoder"].replace("TileEncoder", "NestedMergerEncoder")

    with pytest.raises(
        UserError, match="encoder.visual.merger, which PEFT would confuse with the tower's own visual.merger"
    ):
        run_training(**swap | OWN_ENCODER | {"custom_vision_encoder": nested})


def test_an_encoder_that_miscounts_some_images_is_reported_with_the_samples(run_training: Run, swap: dict) -> None:
    forgetful = OWN_ENCODER["custom_vision_encoder"].replace("TileEncoder", "ForgetfulEncoder")

    with pytest.raises(UserError, match=r"returned \(1, \d+, 24\).*; samples of this step: .*images.json row \d"):
        run_training(**swap | OWN_ENCODER | {"custom_vision_encoder": forgetful}, max_steps=6)


def test_an_encoder_whose_features_are_no_numbers_for_an_image_is_reported_with_the_samples(
    run_training: Run, swap: dict, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "plain.png")
    records = write_records(tmp_path / "plain.json", [conversation("<image>\nWhat?", "Gray.", image="plain.png")] * 2)
    named = OWN_ENCODER["custom_vision_encoder"].replace("TileEncoder", "ContrastEncoder")

    with pytest.raises(UserError, match="the encoder .*:ContrastEncoder returned non-finite features; sam"):
        run_training(**swap | OWN_ENCODER | {"custom_vision_encoder": named}, dataset_use=records)


def test_the_swap_is_the_same_for_bases_of_other_width_untied_head_and_experts(
    run_training: Run, swap: dict, tmp_path: Path, media: Path
) -> None:
    for name, shape in {"8b": {"hidden_size": 96, "tie_word_embeddings": False}, "moe": {"moe": True}}.items():
        base = build_standin(tmp_path / name, **shape)
        folder = run_training(f"run_{name}", **swap, model_name_or_path=base)

        config = json.loads((folder / "config.json").read_text())
        assert config["vision_config"]["out_hidden_size"] == config["text_config"]["hidden_size"]
        assert logits_of(*load_checkpoint(folder, device="cpu"), media).isfinite().all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"custom_vision_encoder": "rad_dion"}, "rad_dino"),
        ({"custom_vision_pretrained_path": "nowhere/rad-dino"}, "nowhere/rad-dino"),
        ({"vision_input_size": "wide"}, "--vision_input_size wide"),
        ({"vision_input_size": "30"}, "not a multiple of the patch"),
        ({"vision_merger": "cubic"}, "--vision_merger.*'cubic' .choose from 'simple', 'norm_linear', 'mlp2'"),
        ({"vision_resize": "zoom"}, "--vision_resize.*'zoom' .choose from 'encoder', 'pad', 'squash', 'crop'"),
        ({"custom_vision_input": "raw"}, "--custom_vision_input.*'raw' .choose from 'native', 'qwen'"),
        ({"vision_merger_path": "nowhere"}, "--vision_merger_path nowhere"),
        ({"tune_mm_mlp": False, "mm_projector_lr": None}, "would leave the fresh merger"),
        ({"vision_merger_path": "nowhere", "dry_run": True}, "--vision_merger_path nowhere"),
        ({"max_pixels": 4096}, "--max_pixels"),
        ({"custom_vision_encoder": None}, "name one by --custom_vision_encoder"),
        ({"model_max_length": 40}, "tokens are more than --model_max_length 40; it has 1 images"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_says_what_to_do(run_training: Run, swap: dict, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_training(**swap | flags)


def test_a_dry_run_counts_the_tokens_of_the_encoder(
    run_training: Run, swap: dict, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="qwenvl"):
        run_training(**swap, dry_run=True)

    assert "tokens a step" in caplog.text


def test_a_run_from_cached_features_repeats_the_one_without_and_the_next_skips_the_encoder(
    run_training: Run, swap: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = losses(run_training("without", **swap))
    cached = swap | {"cache_vision_features": tmp_path / "features"}

    with caplog.at_level("INFO", logger="qwenvl"):
        first = losses(run_training("first", **cached))
        second = losses(run_training("second", **cached))

    assert first == second == pytest.approx(without, rel=1e-5)
    assert "4 of 4 images are to be computed" in caplog.text
    assert "0 of 4 images are to be computed" in caplog.text


def test_the_features_of_a_trained_encoder_are_not_cached(run_training: Run, swap: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features of a frozen encoder"):
        run_training(**swap | TRAINED_ENCODER, cache_vision_features=tmp_path)

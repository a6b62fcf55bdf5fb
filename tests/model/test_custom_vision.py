import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.model.custom_vision import load_trained_tower, plan_custom_vision, warn_of_slow_merger


@pytest.fixture
def model(standin: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(standin)


@pytest.fixture
def stage1(standin: Path, tmp_path: Path) -> Path:
    """Return a folder with the tower of a trained model: the stand-in's, with other numbers in its merger."""
    tensors = {
        name: tensor + 1 if "merger" in name else tensor
        for name, tensor in load_file(standin / "model.safetensors").items()
        if ".visual." in name
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def change(folder: Path, part: str, changed: torch.Tensor | None) -> None:
    """Put another tensor in the place of each whose name contains `part`, or none at all."""
    tensors = load_file(folder / "model.safetensors")
    kept = {name: changed if part in name else tensor for name, tensor in tensors.items()}
    save_file({name: t.clone() for name, t in kept.items() if t is not None}, folder / "model.safetensors")


def test_a_trained_merger_is_copied_and_an_equal_encoder_is_not(model: PreTrainedModel, stage1: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.model.visual.state_dict().items()}

    copied = load_trained_tower(model, str(stage1))

    assert copied == {"merger"}
    for name, tensor in model.model.visual.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 1 if "merger" in name else before[name])


def test_a_trained_encoder_is_copied_too(model: PreTrainedModel, stage1: Path) -> None:
    name = "patch_embed.proj.bias"
    trained = torch.full_like(model.model.visual.get_parameter(name), 3.0)
    change(stage1, name, trained)

    assert load_trained_tower(model, str(stage1)) == {"merger", "vision"}
    assert torch.equal(model.model.visual.get_parameter(name), trained)


def test_a_folder_without_a_merger_is_refused(model: PreTrainedModel, stage1: Path) -> None:
    change(stage1, "merger", None)

    with pytest.raises(UserError, match="no merger in its .safetensors files"):
        load_trained_tower(model, str(stage1))


def test_a_merger_of_another_shape_is_refused_with_both(model: PreTrainedModel, stage1: Path) -> None:
    change(stage1, "visual.merger.linear_fc1.weight", torch.ones(3, 5))

    with pytest.raises(UserError, match=r"its merger is .*this model's is .*use the same encoder"):
        load_trained_tower(model, str(stage1))


def test_a_model_that_keeps_its_encoder_gets_no_plan(standin: Path, processor: ProcessorMixin) -> None:
    config = AutoConfig.from_pretrained(standin)

    assert plan_custom_vision(ModelArguments(str(standin)), config, processor) is None


@pytest.mark.parametrize("size", ["0", "518x", "518x518x518", "half"])
def test_an_input_size_that_is_none_is_refused_with_an_example(
    standin: Path, processor: ProcessorMixin, size: str
) -> None:
    flags = ModelArguments(str(standin), custom_vision_encoder="rad_dino", vision_input_size=size)

    with pytest.raises(UserError, match=f"--vision_input_size {size}: expected pixels, as 518"):
        plan_custom_vision(flags, AutoConfig.from_pretrained(standin), processor)


def test_a_merger_folder_without_weights_is_refused_before_anything_is_loaded(
    standin: Path, processor: ProcessorMixin, tmp_path: Path
) -> None:
    flags = ModelArguments(str(standin), vision_merger_path=str(tmp_path))

    with pytest.raises(UserError, match="no .safetensors files; name an output folder"):
        plan_custom_vision(flags, AutoConfig.from_pretrained(standin), processor)


@pytest.mark.parametrize(
    ("flags", "rate", "better"),
    [
        ({"custom_vision_encoder": "rad_dino"}, 1e-5, "1e-3 alone"),
        ({"custom_vision_encoder": "rad_dino", "tune_mm_llm": True}, 1e-6, "--mm_projector_lr 2e-05"),
        ({"custom_vision_encoder": "rad_dino"}, 1e-4, None),
        ({"custom_vision_encoder": "rad_dino", "vision_merger_path": "stage1"}, 1e-6, None),
        ({}, 1e-6, None),
    ],
)
def test_a_rate_too_low_for_a_fresh_merger_is_warned_of(
    caplog: pytest.LogCaptureFixture, flags: dict, rate: float, better: str | None
) -> None:
    with caplog.at_level(logging.WARNING, logger="qwenvl"):
        warn_of_slow_merger(ModelArguments("base", tune_mm_mlp=True, **flags), rate)

    assert bool(caplog.text) == (better is not None)
    assert (better or "") in caplog.text

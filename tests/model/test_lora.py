from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.model.components import component_sizes, set_trainable
from qwenvl.model.lora import LoraSettings, add_adapter, check_lora_targets, lora_target_pattern

LORA = LoraSettings(r=2, alpha=4, dropout=0.0, target_modules="q_proj,k_proj,v_proj,o_proj")


@pytest.fixture
def model(standin: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(standin)


def test_lora_touches_the_language_model_alone(model: PreTrainedModel) -> None:
    # An encoder whose layers are called as the language model's.
    model.model.visual.blocks[0].q_proj = type(model.lm_head)(4, 4)

    lora = add_adapter(model, LORA)

    adapted = [name for name, _ in lora.named_parameters() if "lora_" in name]
    assert adapted
    assert all(".language_model." in name for name in adapted)


def test_the_merger_is_trained_whole_beside_lora(model: PreTrainedModel) -> None:
    before = component_sizes(model)

    sizes = component_sizes(add_adapter(model, LORA, train={"merger"}))

    assert sizes["merger"].trainable == before["merger"].total
    assert sizes["vision"].trainable == 0
    assert 0 < sizes["llm"].trainable < before["llm"].total


def test_the_encoder_is_trained_whole_beside_lora(model: PreTrainedModel) -> None:
    before = component_sizes(model)

    sizes = component_sizes(add_adapter(model, LORA, train={"vision"}))

    assert sizes["vision"].trainable == before["vision"].total
    assert sizes["merger"].trainable == 0


def test_all_that_is_trained_has_the_precision_of_the_model(model: PreTrainedModel) -> None:
    # DeepSpeed ZeRO-3 puts all trainable parameters into one buffer.
    lora = add_adapter(model.to(torch.bfloat16), LORA, train={"merger", "vision"})

    assert {parameter.dtype for parameter in lora.parameters() if parameter.requires_grad} == {torch.bfloat16}


def test_all_linear_reaches_every_linear_layer_of_the_language_model(model: PreTrainedModel) -> None:
    lora = add_adapter(model, replace(LORA, target_modules="all-linear"))

    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in lora.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("targets", ["qkv", "q_proj,w_pack", ""])
def test_a_target_that_matches_nothing_is_an_error_that_lists_the_layers(model: PreTrainedModel, targets: str) -> None:
    with pytest.raises(UserError, match="q_proj"):
        add_adapter(model, replace(LORA, target_modules=targets))


def test_without_lora_the_adapter_holds_what_is_trained_whole_and_nothing_else(model: PreTrainedModel) -> None:
    sizes = component_sizes(add_adapter(model, None, train={"merger"}))

    assert sizes["merger"].trainable == sizes["merger"].total
    assert sizes["llm"].trainable == sizes["vision"].trainable == 0


def test_a_frozen_encoder_can_be_saved_with_the_adapter(model: PreTrainedModel, tmp_path: Path) -> None:
    adapted = add_adapter(model, LORA, train={"merger"}, save={"vision"})
    adapted.save_pretrained(tmp_path)

    assert component_sizes(adapted)["vision"].trainable == 0
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert any(".visual.blocks." in name for name in file.keys())  # noqa: SIM118


def test_whole_numbers_as_parameters_are_refused_in_an_adapter_and_stay_frozen_without_one(
    model: PreTrainedModel,
) -> None:
    indices = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    model.model.visual.merger.register_parameter("indices", indices)

    with pytest.raises(UserError, match=r"visual\.merger\.indices is a parameter of torch\.int64.*register_buffer"):
        add_adapter(model, LORA, train={"merger"})
    set_trainable(model, {"merger"})
    assert not indices.requires_grad and model.model.visual.merger.norm.weight.requires_grad


@pytest.mark.parametrize("names", ["q_proj, v_proj", "gate_proj", "all-linear"])
def test_targets_are_checked_from_the_configuration_as_on_the_model(model: PreTrainedModel, names: str) -> None:
    check_lora_targets(model.config, names)
    assert lora_target_pattern(model, names)


@pytest.mark.parametrize("names", ["lm_head", "linear_fc1", "qproj", " , "])
def test_a_name_that_is_no_layer_of_the_language_model_is_refused_with_all_that_are(
    model: PreTrainedModel, names: str
) -> None:
    listed = "choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or all-linear"
    with pytest.raises(UserError, match=listed):
        check_lora_targets(model.config, names)
    with pytest.raises(UserError, match=listed):
        lora_target_pattern(model, names)

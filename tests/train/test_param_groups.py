from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForImageTextToText

from qwenvl.errors import UserError
from qwenvl.model.components import set_trainable
from qwenvl.model.lora import LoraSettings, add_adapter
from qwenvl.train.param_groups import build_param_groups, component_table

RATES = {"vision": 1e-6, "merger": 1e-5, "llm": 2e-5}


@pytest.fixture
def model(standin: Path) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(standin)


def test_each_component_gets_its_own_learning_rate(model: nn.Module) -> None:
    set_trainable(model, RATES)

    groups = build_param_groups(model, RATES, weight_decay=0.1)

    assert {group["component"] for group in groups} == set(RATES)
    assert all(group["lr"] == RATES[group["component"]] for group in groups)


def test_every_trainable_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    set_trainable(model, {"vision", "merger"})

    grouped = [id(p) for group in build_param_groups(model, RATES, 0.1) for p in group["params"]]

    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_vectors_such_as_biases_and_norms_do_not_decay(model: nn.Module) -> None:
    set_trainable(model, RATES)

    for group in build_param_groups(model, RATES, weight_decay=0.1):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_a_frozen_model_is_an_error(model: nn.Module) -> None:
    set_trainable(model, ())

    with pytest.raises(UserError, match="nothing is trainable"):
        build_param_groups(model, RATES, 0.1)


def test_under_lora_the_untrained_copy_of_the_merger_is_in_no_group(model: nn.Module) -> None:
    lora = add_adapter(model, LoraSettings(2, 4, 0.0, "q_proj"), train={"merger"})

    names = {id(parameter): name for name, parameter in lora.named_parameters()}
    grouped = [names[id(p)] for group in build_param_groups(lora, RATES, 0.1) for p in group["params"]]

    assert any("merger" in name for name in grouped)
    assert not any("original_module" in name for name in grouped)


def test_the_table_tells_what_is_trained_and_how_fast(model: nn.Module) -> None:
    set_trainable(model, {"merger"})

    rows = {line.split()[0]: line.split() for line in component_table(model, RATES, 0.1).splitlines()[2:]}

    assert rows["vision"][2:] == ["frozen", "-", "-"]
    assert rows["merger"][1] == rows["merger"][2]
    assert rows["merger"][3:] == ["1e-05", "0.1"]

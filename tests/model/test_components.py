from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, PreTrainedModel

from qwenvl.model.components import component_of, component_sizes, module_names, set_trainable


@pytest.fixture
def model(standin: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(standin)


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.visual.blocks.0.attn.qkv.weight", "vision"),
        ("model.visual.pos_embed.weight", "vision"),
        ("model.visual.merger.linear_fc1.weight", "merger"),
        ("model.visual.deepstack_merger_list.1.norm.bias", "merger"),
        ("base_model.model.model.visual.merger.modules_to_save.default.linear_fc1.weight", "merger"),
        ("module.model.visual.merger.proj.weight", "merger"),
        ("model.visual.encoder.visual.merger.weight", "vision"),
        ("base_model.model.model.visual.encoder.language_model.q_proj.weight", "vision"),
        ("model.language_model.layers.0.self_attn.q_proj.weight", "llm"),
        ("model.language_model.embed_tokens.weight", "llm"),
        ("lm_head.weight", "llm"),
        ("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight", "llm"),
    ],
)
def test_each_parameter_belongs_to_the_component_that_its_name_tells(name: str, component: str) -> None:
    assert component_of(name) == component


def test_the_components_hold_every_parameter_once(model: PreTrainedModel) -> None:
    sizes = component_sizes(model)

    assert all(size.total > 0 for size in sizes.values())
    assert sum(size.total for size in sizes.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_only_the_named_components_are_trainable(model: PreTrainedModel) -> None:
    set_trainable(model, {"merger"})

    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".merger." in name or ".deepstack_merger_list." in name for name in trainable)
    assert component_sizes(model)["merger"].trainable == component_sizes(model)["merger"].total


def test_the_modules_of_merger_and_vision_hold_the_whole_tower(model: PreTrainedModel) -> None:
    merger, vision = module_names(model, "merger"), module_names(model, "vision")

    assert merger == ["visual.merger", "visual.deepstack_merger_list.0", "visual.deepstack_merger_list.1"]
    held = sum(p.numel() for name in merger + vision for p in model.get_submodule(f"model.{name}").parameters())
    assert held == sum(parameter.numel() for parameter in model.model.visual.parameters())

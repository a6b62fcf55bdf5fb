from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

from qwenvl.checkpoint.savable import check_savable
from qwenvl.errors import UserError


@pytest.fixture
def model(standin: Path) -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(standin)


def tie(model: nn.Module) -> None:
    blocks = model.model.visual.blocks
    blocks[1].mlp.linear_fc1.weight = blocks[0].mlp.linear_fc1.weight


def test_a_model_whose_head_is_tied_as_its_class_says_can_be_saved(
    model: Qwen3VLForConditionalGeneration, standin: Path
) -> None:
    assert model.lm_head.weight is model.get_input_embeddings().weight
    check_savable(model)
    with torch.device("meta"):
        check_savable(AutoModelForImageTextToText.from_config(model.config))


def test_tied_weights_of_an_encoder_are_found_before_a_save_fails_on_them(
    model: Qwen3VLForConditionalGeneration, tmp_path: Path
) -> None:
    tie(model)

    with pytest.raises(
        UserError, match=r"blocks.0.mlp.linear_fc1.weight and .*blocks.1.mlp.linear_fc1.weight are the same"
    ):
        check_savable(model)
    with pytest.raises(RuntimeError, match="shared tensors"):  # as it would have, hours later
        model.save_pretrained(tmp_path)


def test_tied_weights_without_memory_are_found_as_well(model: Qwen3VLForConditionalGeneration) -> None:
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(model.config)
    tie(shape)

    with pytest.raises(UserError, match="are the same tensor"):
        check_savable(shape)


def test_parts_of_one_tensor_that_do_not_overlap_can_be_saved(
    model: Qwen3VLForConditionalGeneration, tmp_path: Path
) -> None:
    blocks = model.model.visual.blocks
    both = torch.stack([block.mlp.linear_fc1.weight.detach() for block in blocks[:2]])
    for block, part in zip(blocks, both, strict=False):
        block.mlp.linear_fc1.weight = nn.Parameter(part)

    check_savable(model)
    model.save_pretrained(tmp_path)


def test_an_adapter_holds_a_copy_of_each_tied_weight(model: Qwen3VLForConditionalGeneration, tmp_path: Path) -> None:
    tie(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["visual"]))

    check_savable(adapted)
    adapted.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(3).to_sparse(), "a torch.sparse_coo tensor of torch.float32"),
        (torch.zeros(3, dtype=torch.complex128), "a torch.strided tensor of torch.complex128"),
    ],
)
def test_a_buffer_that_safetensors_does_not_know_is_refused_by_name(
    model: Qwen3VLForConditionalGeneration, value: torch.Tensor, message: str
) -> None:
    model.model.visual.register_buffer("table", value)

    with pytest.raises(UserError, match=f"model.visual.table is {message}"):
        check_savable(model)


def test_state_that_is_no_tensor_is_refused_by_name(
    model: Qwen3VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.model.visual.merger), "get_extra_state", lambda self: {"step": 3}, raising=False)

    with pytest.raises(UserError, match="merger._extra_state is a dict in the model's state dict"):
        check_savable(model)

"""Qwen3-VL's own tower with one attention call a layer gives what Transformers' gives."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwenvl.vision import native
from qwenvl.vision.native import PackedVisionTower, pack_vision_attention, patch_layout
from tests.varlen import attend_within_samples

GRIDS = torch.tensor([[1, 4, 6], [2, 2, 4], [1, 8, 2]])


@pytest.fixture
def tower(standin: Path, monkeypatch: pytest.MonkeyPatch) -> Qwen3VLVisionModel:
    monkeypatch.setattr(native, "varlen_attn", attend_within_samples)
    return AutoModelForImageTextToText.from_pretrained(standin).model.visual.eval()


def patches_for(tower: Qwen3VLVisionModel) -> torch.Tensor:
    torch.manual_seed(0)
    width = tower.patch_embed.proj.weight[0].numel()
    return torch.randn(int(GRIDS.prod(1).sum()), width)


@pytest.mark.parametrize("with_layout", [False, True])
def test_features_and_gradients_are_those_of_transformers(tower: Qwen3VLVisionModel, with_layout: bool):
    patches = patches_for(tower)
    packed = copy.deepcopy(tower)
    pack_vision_attention(packed)
    expected = tower(patches, grid_thw=GRIDS)
    layout = patch_layout(GRIDS, tower.config) if with_layout else None
    found = packed(patches, grid_thw=GRIDS, layout=layout)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-4)
    assert len(found.deepstack_features) == len(expected.deepstack_features) > 0
    for one, other in zip(found.deepstack_features, expected.deepstack_features, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    for output in (expected, found):
        (output.pooler_output.sum() + sum(each.sum() for each in output.deepstack_features)).backward()
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


def test_a_frozen_encoder_computes_in_its_own_precision_and_a_trained_one_under_autocast(tower: Qwen3VLVisionModel):
    pack_vision_attention(tower)
    seen: dict[str, bool] = {}
    block = tower.blocks[0]
    block.register_forward_pre_hook(lambda *_: seen.update(block=torch.is_autocast_enabled("cpu")))
    tower.merger.register_forward_pre_hook(lambda *_: seen.update(merger=torch.is_autocast_enabled("cpu")))
    patches = patches_for(tower)
    for trained in (False, True):
        tower.blocks.requires_grad_(trained)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tower(patches, grid_thw=GRIDS)
        assert seen == {"block": trained, "merger": True}


def test_the_weights_keep_their_names_and_other_towers_stay_as_they_are(tower: Qwen3VLVisionModel):
    names = list(tower.state_dict())
    pack_vision_attention(tower)
    assert type(tower) is PackedVisionTower and list(tower.state_dict()) == names
    other = torch.nn.Linear(2, 2)
    pack_vision_attention(other)
    assert type(other) is torch.nn.Linear

"""Qwen3-VL's own tower with one attention call a layer, on a GPU in bf16, against Transformers' with sdpa.

Tolerance 2 % of the norm of features and of all gradients: bf16 rounds to 0.4 %, several times in each layer.
"""

import copy

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwenvl.vision.native import PackedVisionTower, pack_vision_attention, patch_layout
from tests.gpu.compare import DEVICE, NEEDS_GPU, relative_error

pytestmark = NEEDS_GPU
GRIDS = torch.tensor([[1, 24, 18], [2, 8, 12], [1, 2, 2], [1, 30, 44]])
TOLERANCE = 0.02


@pytest.mark.parametrize("head_width", [64, 72])
@pytest.mark.parametrize("with_layout", [False, True])
def test_features_and_gradients_are_those_of_transformers(head_width: int, with_layout: bool) -> None:
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(
        hidden_size=4 * head_width,
        num_heads=4,
        depth=4,
        intermediate_size=512,
        out_hidden_size=256,
        num_position_embeddings=48**2,
        deepstack_visual_indexes=[1, 2],
    )
    config._attn_implementation = "sdpa"
    tower = Qwen3VLVisionModel(config).to(DEVICE, torch.bfloat16)
    packed = copy.deepcopy(tower)
    pack_vision_attention(packed)
    assert type(packed) is PackedVisionTower
    patches = torch.randn(int(GRIDS.prod(1).sum()), tower.patch_embed.proj.weight[0].numel())
    patches = patches.to(DEVICE, torch.bfloat16)
    layout = None
    if with_layout:
        layout = {
            name: value.to(DEVICE) if torch.is_tensor(value) else value
            for name, value in patch_layout(GRIDS, config).items()
        }
    expected = tower(patches, grid_thw=GRIDS.to(DEVICE))
    found = packed(patches, grid_thw=GRIDS.to(DEVICE), layout=layout)

    pairs = zip(
        [found.pooler_output, *found.deepstack_features],
        [expected.pooler_output, *expected.deepstack_features],
        strict=True,
    )
    for one, other in pairs:
        assert relative_error(one, other) < TOLERANCE
    for output in (expected, found):
        torch.manual_seed(1)
        features = [output.pooler_output, *output.deepstack_features]
        sum((each.float() * torch.randn_like(each.float())).sum() for each in features).backward()
    gradients = [torch.cat([parameter.grad.flatten() for parameter in each.parameters()]) for each in (packed, tower)]
    assert relative_error(*gradients) < TOLERANCE

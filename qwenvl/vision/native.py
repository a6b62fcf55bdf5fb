"""Run Qwen3-VL's own vision encoder on all images of a batch at once.

S patches of all images and frames together, H heads, D head width, D_vis encoder width, D_llm text width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)


class PackedVisionAttention(Qwen3VLVisionAttention):
    """Attention within each image in one call of PyTorch's variable-length kernel.

    Transformers calls an attention function once an image where flash-attn is not installed, and waits for the GPU to
    learn the lengths: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/qwen3_vl/modeling_qwen3_vl.py#L297
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        max_seqlen: int,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return (S, D_vis) from `hidden_states` (S, D_vis); image i has the rows from `cu_seqlens[i]` on."""
        rows = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(rows, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=self.scaling)
        return self.proj(output.reshape(rows, -1))


class PackedVisionTower(Qwen3VLVisionModel):
    """Qwen3-VL's vision encoder and mergers: one attention call a layer, and no autocast in what is frozen."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid_thw: torch.Tensor,
        layout: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithDeepstackFeatures:
        """Encode patches (S, 3 * 2 * 16 * 16) of the images and videos in `grid_thw` (number of media, 3).

        `layout` is what `patch_layout` finds for these grids. `pooler_output` and each of `deepstack_features` are
        (S / 4, D_llm), `last_hidden_state` is (S, D_vis).
        """
        weight = self.patch_embed.proj.weight
        if layout is None:
            layout = send_to_device(patch_layout(grid_thw.cpu(), self.config), weight.device)
        is_frozen = not any(parameter.requires_grad for parameter in self.blocks.parameters())
        device = weight.device.type
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not is_frozen):
            states, taps = self._encode(hidden_states, layout)
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=states,
            pooler_output=self.merger(states),
            deepstack_features=[merge(tap) for merge, tap in zip(self.deepstack_merger_list, taps, strict=True)],
        )

    def _encode(self, patches: torch.Tensor, layout: Mapping[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the last hidden states and those that DeepStack takes, each (S, D_vis)."""
        projection = self.patch_embed.proj
        states = F.linear(patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)
        positions = self.pos_embed(layout["interpolation_indices"]) * layout["interpolation_weights"][:, :, None]
        states = states + positions.sum(1).to(states.dtype)
        rotation = self.rotary_pos_emb(states, layout["positions"])
        taps = []
        for depth, block in enumerate(self.blocks):
            states = block(
                states,
                cu_seqlens=layout["cu_seqlens"],
                max_seqlen=layout["max_seqlen"],
                position_embeddings=rotation,
            )
            if depth in self.deepstack_visual_indexes:
                taps.append(states)
        return states, taps


def patch_layout(grid_thw: torch.Tensor, config: PreTrainedConfig) -> dict[str, Any]:
    """Work out where each of S patches stands, and where the images and frames begin, from grids (number of media, 3).

    Returns cu_seqlens (n + 1,) with max_seqlen, positions (S, 2), and interpolation_indices and interpolation_weights
    (S, 4) into the encoder's table of position embeddings. Data workers call it, so that the GPU need not wait.
    """
    cu_seqlens = get_vision_cu_seqlens(grid_thw)
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw,
        num_grid_per_side=int(config.num_position_embeddings**0.5),
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=config.spatial_merge_size,
    )
    return {
        "cu_seqlens": cu_seqlens,
        "max_seqlen": int(cu_seqlens.diff().max()),
        "positions": get_vision_position_ids(grid_thw, config.spatial_merge_size),
        "interpolation_indices": indices,
        "interpolation_weights": weights,
    }


def pack_vision_attention(tower: nn.Module) -> None:
    """Let Qwen3-VL's own vision tower run as a `PackedVisionTower`, in place; its weights and their names stay."""
    if type(tower) is not Qwen3VLVisionModel:
        return
    tower.__class__ = PackedVisionTower
    for block in tower.blocks:
        block.attn.__class__ = PackedVisionAttention

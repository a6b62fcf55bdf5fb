"""The forward pass of training: a collated batch in, hidden states out, without a wait for the GPU.

Transformers' own forward pass looks for placeholders with boolean masks, for which the CPU has to wait about twenty
times a step: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/qwen3_vl/modeling_qwen3_vl.py#L1158
Here the collator has found them. B rows of L tokens, P placeholders of one kind, D text width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

# Each kind of medium: the keys of its pixels, its grids and the positions of its placeholders.
_MEDIA = (
    ("image", "pixel_values", "image_grid_thw", "image_rows"),
    ("video", "pixel_values_videos", "video_grid_thw", "video_rows"),
)


def hidden_states(
    model: nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    text_cu_seqlens: torch.Tensor | None = None,
    text_max_seqlen: int | None = None,
    layouts: Mapping[str, Any] | None = None,
    **media: torch.Tensor,
) -> torch.Tensor:
    """Return the last hidden states (B, L, D) of a Qwen3-VL, dense or MoE, with any tower.

    `input_ids` is (B, L), `position_ids` (4, B, L): the plain order, then M-RoPE's three rows. `media` holds the pixels
    and grids of images and videos, and in `image_rows` and `video_rows` (P,) the positions of their placeholders in the
    flattened tokens. `text_cu_seqlens` and `text_max_seqlen` are the boundaries of a flattened row, for "varlen"
    attention; `layouts` is what the tower would otherwise work out from the grids of each kind.
    """
    text = model.language_model
    states = text.embed_tokens(input_ids)
    deepstack: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for kind, pixels, grids, rows in _MEDIA:
        if pixels in media:
            inputs = {} if layouts is None else {"layout": layouts[kind]}
            features = model.visual(media[pixels], grid_thw=media[grids], **inputs)
            states = _at_rows(states, torch.Tensor.index_copy, media[rows], features.pooler_output)
            deepstack.append((media[rows], features.deepstack_features))
    text_positions = position_ids[0]
    mask = None
    boundaries: dict[str, Any] = {}
    if text_cu_seqlens is None:
        mask = create_causal_mask(
            config=text.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=text_positions,
        )
    else:
        boundaries = {"text_cu_seqlens": text_cu_seqlens, "text_max_seqlen": text_max_seqlen}
    rotation = text.rotary_emb(states, position_ids[1:])
    for depth, layer in enumerate(text.layers):
        states = layer(
            states, attention_mask=mask, position_ids=text_positions, position_embeddings=rotation, **boundaries
        )
        for rows, features in deepstack:
            if depth < len(features):
                states = _at_rows(states, torch.Tensor.index_add, rows, features[depth])
    return text.norm(states)


def _at_rows(states: torch.Tensor, change: Any, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return `states` (B, L, D), its flattened rows changed by features (P, D)."""
    return change(states.flatten(0, 1), 0, rows, features.to(states.dtype)).view_as(states)

"""CLIP's vision tower (arXiv 2103.00020)."""

from typing import Any

import torch
from transformers import CLIPVisionModel, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder, square
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder


@register_encoder("clip")
class ClipEncoder(TransformersEncoder):
    """CLIP ViT; its last hidden state is not normed (the norm is for the pooled CLS), LLaVA uses layer -2."""

    card = EncoderCard("openai/clip-vit-large-patch14-336", 1024, 336, 14, "MIT")
    models = {"clip_vision_model": CLIPVisionModel}
    final_norm_name = "post_layernorm"
    last_is_normed = False

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """CLS."""
        return 1

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        """Interpolate position embeddings; at their own size that is the identity."""
        return {"pixel_values": pixel_values, "interpolate_pos_encoding": True}

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Shorter side to the size of the position embeddings, center crop."""
        size = square(config.get("image_size", 224))
        return Preprocessing(*size, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)

"""SigLIP (arXiv 2303.15343) and MedSigLIP, its medical sibling (arXiv 2507.05201)."""

from typing import Any

import torch
from transformers import SiglipVisionModel

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder, square
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder


@register_encoder("siglip")
class SiglipEncoder(TransformersEncoder):
    """SigLIP's vision tower; no prefix tokens."""

    card = EncoderCard("google/siglip-so400m-patch14-384", 1152, 384, 14, "Apache-2.0")
    models = {"siglip_vision_model": SiglipVisionModel}
    final_norm_name = "post_layernorm"
    unused_heads = {"vision_use_head": False}

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        """Interpolate position embeddings; at their own size that is the identity."""
        return {"pixel_values": pixel_values, "interpolate_pos_encoding": True}

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Squash to the size of the position embeddings."""
        return Preprocessing(*square(config.get("image_size", 224)), "squash")


@register_encoder("medsiglip")
class MedSiglipEncoder(SiglipEncoder):
    """SigLIP-400M trained on X-rays, CT and MRI slices, skin, eyes and histology."""

    card = EncoderCard(
        "google/medsiglip-448", 1152, 448, 14, "Health AI Developer Foundations", "accept on its hub page"
    )

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Squash to 448 pixels, bilinear."""
        return Preprocessing(*square(config.get("image_size", 448)), "squash", interpolation="bilinear")

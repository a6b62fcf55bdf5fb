"""SigLIP 2 (arXiv 2502.14786): fixed sizes, and NaFlex, which keeps each image's aspect."""

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, Siglip2VisionModel, SiglipVisionModel

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.siglip import SiglipEncoder
from qwenvl.vision.options import EncoderOptions
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder

NAFLEX = "siglip2_vision_model"


@register_encoder("siglip2")
class Siglip2Encoder(SiglipEncoder):
    """SigLIP 2's vision tower; checkpoints of a fixed size are of SigLIP's own class."""

    card = EncoderCard("google/siglip2-so400m-patch14-384", 1152, 384, 14, "Apache-2.0")
    models = {"siglip_vision_model": SiglipVisionModel, NAFLEX: Siglip2VisionModel}

    def __init__(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        super().__init__(model, options)
        self.is_naflex = model.config.model_type == NAFLEX

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        """Cut the images into patches for NaFlex, where all images of a call are of one size: none is padded."""
        if not self.is_naflex:
            return super().model_inputs(pixel_values)
        num_images, channels, height, width = pixel_values.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        patches = pixel_values.reshape(num_images, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": patches.reshape(num_images, rows * columns, p * p * channels),
            "pixel_attention_mask": None,
            # On the host: the model reads it as numbers.
            "spatial_shapes": torch.tensor([[rows, columns]] * num_images, device="cpu"),
        }

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Squash to the fixed size, or fill the number of patches that NaFlex was trained with; both bilinear."""
        if config.get("model_type") != NAFLEX:
            return replace(super().default_preprocessing(config), interpolation="bilinear")
        area = config.get("num_patches", 256) * config.get("patch_size", 16) ** 2
        side = int(area**0.5)
        return Preprocessing(side, side, "naflex", interpolation="bilinear", max_pixels=area)

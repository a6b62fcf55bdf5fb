"""DINOv2 (arXiv 2304.07193) in all sizes, with registers (arXiv 2309.16588) or without."""

from transformers import Dinov2Model, Dinov2WithRegistersModel, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder, square
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder

PUBLISHED_SIZE, PUBLISHED_EDGE = 224, 256


@register_encoder("dinov2")
class Dinov2Encoder(TransformersEncoder):
    """DINOv2 ViT-S/B/L/g; the folder or hub name determines which."""

    card = EncoderCard("facebook/dinov2-base", 768, 224, 14, "Apache-2.0")
    models = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
    final_norm_name = "layernorm"

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """CLS, then the registers."""
        return 1 + getattr(config, "num_register_tokens", 0)

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Crop 224 pixels out of 256 (or less, if the positions are for less), not the 518 of the positions."""
        side = min(PUBLISHED_SIZE, *square(config.get("image_size", PUBLISHED_SIZE)))
        edge = side * PUBLISHED_EDGE // PUBLISHED_SIZE
        return Preprocessing(side, side, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, resize_edge=edge)

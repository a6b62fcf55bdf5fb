"""RAD-DINO (arXiv 2401.10815), a DINOv2 of chest X-rays, and its sibling in MAIRA-2 (arXiv 2406.04449)."""

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.dinov2 import Dinov2Encoder
from qwenvl.vision.encoders.transformers_models import square
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder

# Of chest X-rays, on each of three equal channels.
MEAN, STD = (0.5307,) * 3, (0.2583,) * 3


@register_encoder("rad_dino")
class RadDinoEncoder(Dinov2Encoder):
    """ViT-B/14 at 518 pixels: 37 x 37 tokens."""

    card = EncoderCard("microsoft/rad-dino", 768, 518, 14, "MIT")

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Shorter side to the size of the position embeddings, center crop."""
        return Preprocessing(*square(config.get("image_size", 518)), mean=MEAN, std=STD)


@register_encoder("rad_dino_maira2")
class RadDinoMaira2Encoder(RadDinoEncoder):
    """The RAD-DINO that MAIRA-2 was trained with: more X-rays, same shape."""

    card = EncoderCard("microsoft/rad-dino-maira-2", 768, 518, 14, "MSRLA (research only)")

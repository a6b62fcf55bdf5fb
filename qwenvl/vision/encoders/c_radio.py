"""C-RADIO (arXiv 2412.07679), one student of several foundation models."""

from transformers import PreTrainedConfig, RadioModel

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder

DEFAULT_SIZE = 512
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@register_encoder("c_radio")
class CRadioEncoder(TransformersEncoder):
    """C-RADIO; takes pixels in 0..1, normalizes them itself, and has no final norm (the merger may: norm_linear)."""

    card = EncoderCard("nvidia/C-RADIOv4-H", 1280, DEFAULT_SIZE, 16, "NVIDIA Open Model License")
    models = {"radio": RadioModel}
    last_is_normed = False

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """Summary tokens, then the registers."""
        return config.num_summary_tokens

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Squash to 512 pixels (any multiple of 16 up to 2048 will do), or to the largest that the model takes."""
        side = min(DEFAULT_SIZE, config.get("max_img_size", DEFAULT_SIZE))
        return Preprocessing(side, side, "squash", **RAW)

"""AIMv2 (arXiv 2411.14402)."""

from transformers import Aimv2Config, Aimv2Model, Aimv2VisionModel, AutoConfig, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder, load_whole, square
from qwenvl.vision.options import EncoderOptions
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder


@register_encoder("aimv2")
class Aimv2Encoder(TransformersEncoder):
    """AIMv2 ViT; one input size each, but for the checkpoints called native; no prefix tokens."""

    card = EncoderCard("apple/aimv2-large-patch14-224", 1024, 224, 14, "Apple AMLR")
    models = {"aimv2_vision_model": Aimv2VisionModel}
    final_norm_name = "rms_norm"
    unused_heads = {"use_head": False}

    def __init__(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        super().__init__(model, options)
        self.any_size = model.config.is_native

    @classmethod
    def load_model(cls, model_type: str, values: dict, weights: str | None) -> PreTrainedModel:
        """Load a vision checkpoint, or the vision part of a whole one ("-lit"), whose names differ by a prefix."""
        if weights is None:
            return super().load_model(model_type, values, weights)
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        if not isinstance(config, Aimv2Config):
            return super().load_model(model_type, values, weights)
        config.vision_config.update(values)
        return load_whole(Aimv2Model, weights, config).vision_model

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Shorter side to the input size, center crop."""
        size = square(config.get("image_size", 224))
        return Preprocessing(*size, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)

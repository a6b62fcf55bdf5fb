"""DINOv3 (arXiv 2508.10104): the ViTs and the ConvNeXts."""

from transformers import DINOv3ConvNextModel, DINOv3ViTModel, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from qwenvl.errors import UserError
from qwenvl.vision.encoder import EncoderCard
from qwenvl.vision.encoders.transformers_models import TransformersEncoder, square
from qwenvl.vision.options import LAST_LAYER, EncoderOptions
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder

CONVNEXT = "dinov3_convnext"
CONVNEXT_STRIDE = 32


@register_encoder("dinov3")
class Dinov3Encoder(TransformersEncoder):
    """DINOv3; its positions are rotary, so any multiple of the patch is an equally good input size."""

    card = EncoderCard(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", 768, 224, 16, "DINOv3 License", "accept on its hub page"
    )
    models = {"dinov3_vit": DINOv3ViTModel, CONVNEXT: DINOv3ConvNextModel}
    final_norm_name = "norm"

    def __init__(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        super().__init__(model, options)
        inner = options.layer != LAST_LAYER or options.final_norm is False
        if inner and model.config.model_type == CONVNEXT:
            raise UserError(
                "a DINOv3 ConvNeXt returns its normed last stage only; leave out the layer and the final norm"
            )

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """CLS (the pooled map in a ConvNeXt), then the registers."""
        return 1 + getattr(config, "num_register_tokens", 0)

    @staticmethod
    def width(config: PreTrainedConfig) -> int:
        """Return the ViT's width, or that of the ConvNeXt's last stage."""
        return config.hidden_sizes[-1] if config.model_type == CONVNEXT else config.hidden_size

    @staticmethod
    def patch(config: PreTrainedConfig) -> int:
        """Return the ViT's patch, or the stride of the ConvNeXt's last stage."""
        return CONVNEXT_STRIDE if config.model_type == CONVNEXT else TransformersEncoder.patch(config)

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing:
        """Squash, as its own image processor does."""
        size = square(config.get("image_size", 224))
        return Preprocessing(
            *size, "squash", mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, interpolation="bilinear"
        )

"""BiomedCLIP's vision tower (arXiv 2303.00915): open_clip weights of a timm ViT."""

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qwenvl.errors import UserError
from qwenvl.vision.encoder import EncoderCard, EncoderSpec, VisionEncoder
from qwenvl.vision.encoders.timm_models import TimmEncoder
from qwenvl.vision.hub import read_settings
from qwenvl.vision.options import EncoderOptions
from qwenvl.vision.registry import register_encoder

SETTINGS = "open_clip_config.json"
# open_clip's own defaults by timm's names; open_clip's names of resize policies -> timm's.
PUBLISHED = {
    "mean": OPENAI_CLIP_MEAN,
    "std": OPENAI_CLIP_STD,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
CROP_MODES = {"shortest": "center", "squash": "squash"}


@register_encoder("biomedclip")
class BiomedClipEncoder(TimmEncoder):
    """ViT-B/16 trained on figures of PubMed articles with their captions."""

    card = EncoderCard("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 768, 224, 16, "MIT")

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSpec:
        """Return the architecture, with the preprocessing of the open_clip configuration next to the weights."""
        config: dict = {"architecture": "vit_base_patch16_224"}
        # The settings published under the default name are known here, so the hub need not be queried.
        if path is not None and path != cls.card.default_path:
            config["pretrained_cfg"] = _saved_settings(path)
        return EncoderSpec(config, weights=path)

    @classmethod
    def build(cls, config: dict, options: EncoderOptions, weights: str | None) -> VisionEncoder:
        """Build the timm model with open_clip's preprocessing."""
        settings = {**PUBLISHED, **config.get("pretrained_cfg", {})}
        return super().build({**config, "pretrained_cfg": settings}, options, weights)


def _saved_settings(path: str) -> dict:
    """Translate open_clip's settings next to the weights into timm's; omitted values are open_clip's defaults."""
    saved = read_settings(path, SETTINGS)
    published = saved.get("preprocess_cfg", {})
    size = published.get("size", saved.get("model_cfg", {}).get("vision_cfg", {}).get("image_size", 224))
    height, width = (size, size) if isinstance(size, int) else size
    mode = published.get("resize_mode", "shortest")
    if mode not in CROP_MODES:
        raise UserError(
            f"{path}: resize_mode {mode!r} in {SETTINGS} is not supported; expected one of {', '.join(CROP_MODES)}"
        )
    kept = {key: published[key] for key in ("mean", "std", "interpolation") if key in published}
    return {**kept, "input_size": (3, height, width), "crop_mode": CROP_MODES[mode]}

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


def _section(settings: dict, name: str, path: str) -> dict:
    """Return an object inside the settings, empty if there is none."""
    section = settings.get(name, {})
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} in {SETTINGS} is {section!r}; expected a JSON object")
    return section


def _saved_settings(path: str) -> dict:
    """Translate open_clip's settings next to the weights into timm's; omitted values are open_clip's defaults."""
    saved = read_settings(path, SETTINGS)
    published = _section(saved, "preprocess_cfg", path)
    vision = _section(_section(saved, "model_cfg", path), "vision_cfg", path)
    size = published.get("size", vision.get("image_size", 224))
    sides = size if isinstance(size, list) else [size] * 2
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"{path}: size in {SETTINGS} is {size!r}; expected pixels, as 224, or [height, width]")
    mode = published.get("resize_mode", "shortest")
    if mode not in tuple(CROP_MODES):
        raise UserError(
            f"{path}: resize_mode {mode!r} in {SETTINGS} is not supported; expected one of {', '.join(CROP_MODES)}"
        )
    kept = {key: published[key] for key in ("mean", "std", "interpolation") if key in published}
    return {**kept, "input_size": (3, *sides), "crop_mode": CROP_MODES[mode]}

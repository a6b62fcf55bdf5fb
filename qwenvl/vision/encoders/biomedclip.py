"""Owns BiomedCLIP's vision tower (arXiv 2303.00915): open_clip weights of a timm ViT."""

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qwenvl.vision.encoder import EncoderCard, EncoderSource
from qwenvl.vision.encoders.timm_models import TimmEncoder
from qwenvl.vision.geometry import Preprocessing
from qwenvl.vision.registry import register_encoder


@register_encoder("biomedclip")
class BiomedClipEncoder(TimmEncoder):
    """ViT-B/16 trained on figures of PubMed articles with their captions."""

    card = EncoderCard("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 768, 224, 16, "MIT")

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSource:
        """Return the one architecture, with the preprocessing of its open_clip configuration."""
        published = Preprocessing(224, 224, mean=OPENAI_CLIP_MEAN, std=OPENAI_CLIP_STD)
        return EncoderSource({"architecture": "vit_base_patch16_224"}, published, path)

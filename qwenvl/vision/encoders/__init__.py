"""The encoder families; importing this package registers all of them."""

from qwenvl.vision.encoders import (  # noqa: F401
    aimv2,
    biomedclip,
    c_radio,
    clip,
    dinov2,
    dinov3,
    rad_dino,
    siglip,
    siglip2,
    timm_models,
    transformers_models,
)

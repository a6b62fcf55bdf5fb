"""Small configurations of every encoder, for tests on the CPU."""

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT_WITH_MLP = {**VIT, "intermediate_size": 48}
DINOV2 = {**VIT, "mlp_ratio": 2, "image_size": 28, "patch_size": 7}

# name -> configuration that builds it; several lines of a family are told apart by a note behind "#".
SMALL_ENCODERS: dict[str, dict] = {
    "rad_dino": DINOV2,
    "rad_dino_maira2": DINOV2,
    "dinov2": DINOV2,
    "dinov2#registers": {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 2},
    "dinov3": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8, "num_register_tokens": 2},
    "dinov3#convnext": {
        "model_type": "dinov3_convnext",
        "image_size": 64,
        "hidden_sizes": [8, 12, 16, 24],
        "depths": [1, 1, 1, 1],
    },
    "siglip": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8},
    "siglip2": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8},
    "siglip2#naflex": {**VIT_WITH_MLP, "model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 8},
    "medsiglip": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8},
    "clip": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8},
    "aimv2": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8},
    "aimv2#native": {**VIT_WITH_MLP, "image_size": 32, "patch_size": 8, "is_native": True},
    "c_radio": {
        **VIT,
        "mlp_ratio": 2.0,
        "image_size": 32,
        "patch_size": 8,
        "max_img_size": 64,
        "num_cls_tokens": 2,
        "num_registers": 1,
    },
    "biomedclip": {
        "architecture": "vit_base_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    },
    "timm:vit_tiny_patch16_224": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    },
    "timm:swin_tiny_patch4_window7_224": {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {
            "img_size": 32,
            "patch_size": 4,
            "window_size": 2,
            "embed_dim": 16,
            "depths": (1, 1),
            "num_heads": (2, 2),
        },
    },
    "timm:convnext_atto": {
        "architecture": "convnext_atto",
        "model_args": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)},
    },
    "timm:resnet18": {
        "architecture": "resnet18",
        "model_args": {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24)},
    },
    "hf:vit": {**VIT_WITH_MLP, "model_type": "vit", "image_size": 32, "patch_size": 8},
}


def name_of(case: str) -> str:
    """Return the encoder's name of a case."""
    return case.partition("#")[0]

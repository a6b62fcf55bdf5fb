"""Small configurations of every encoder on the CPU, and helpers to swap them in and to build inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.video_utils import VideoMetadata

from qwenvl.vision import (
    Preprocessing,
    TowerOptions,
    VisionEncoder,
    plan_vision_config,
    swap_processor,
    swap_vision_tower,
)

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT_WITH_MLP = {**VIT, "intermediate_size": 48}
DINOV2 = {**VIT, "mlp_ratio": 2, "image_size": 28, "patch_size": 7}

# name -> configuration that builds it; several entries of a family differ by a suffix after "#".
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
    "siglip#uneven": {**VIT_WITH_MLP, "image_size": 31, "patch_size": 7},
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


def with_encoder(case: str, **changes: Any) -> TowerOptions:
    """Return the options of a tower around a small encoder, with `changes` to them."""
    return TowerOptions(name_of(case), encoder_config=SMALL_ENCODERS[case], **changes)


def swap(folder: Path, tower: TowerOptions) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a base model's folder and put the tower in; return the model, in eval mode, and its processor."""
    torch.manual_seed(0)
    base = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    vision_config = plan_vision_config(model.config, tower, base)
    return swap_vision_tower(model, vision_config).eval(), swap_processor(base, vision_config)


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return an image of colored noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(processor: ProcessorMixin, images: list | None = None, frames: torch.Tensor | None = None) -> BatchFeature:
    """Return the model's inputs for one question about images, or about a video (T, 3, H, W) sampled at 2 fps."""
    kinds = ["image"] * len(images or []) + ["video"] * (frames is not None)
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    video = {}
    if frames is not None:
        indices = list(range(len(frames)))
        metadata = VideoMetadata(total_num_frames=len(frames), fps=2.0, frames_indices=indices)
        video = {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
    return processor(text=[text], images=images, return_tensors="pt", **video)


class PatchEncoder(VisionEncoder):
    """Images of 16 x 8 pixels to 4 x 2 tokens, with a layer that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.patch_size = 8, 4
        self.preprocessing = Preprocessing(16, 8, "squash")
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.spare = nn.Linear(2, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images, (B, 3, h, w) -> (B, h * w / 16, 8)."""
        return self.patches(pixel_values).flatten(2).transpose(1, 2)

"""Custom vision towers for Qwen3-VL: encoders, mergers, tower, processors, and swapping them in."""

from qwenvl.errors import exit_program_without

try:
    from qwenvl.vision import encoders  # noqa: F401  registers every family
except ModuleNotFoundError as error:
    exit_program_without(error)
from qwenvl.vision.encoder import EncoderCard, VisionEncoder
from qwenvl.vision.merger import MERGERS, SimpleVisionMerger
from qwenvl.vision.modeling import (
    CUSTOM_MODEL_TYPES,
    custom_config,
    plan_vision_config,
    swap_vision_tower,
)
from qwenvl.vision.options import INPUT_MODES, EncoderOptions, TowerOptions
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.processing import swap_processor
from qwenvl.vision.registry import build_encoder, list_encoders, register_encoder
from qwenvl.vision.tower import CustomVisionConfig, CustomVisionTower

__all__ = [
    "CUSTOM_MODEL_TYPES",
    "INPUT_MODES",
    "MERGERS",
    "CustomVisionConfig",
    "CustomVisionTower",
    "EncoderCard",
    "EncoderOptions",
    "Preprocessing",
    "SimpleVisionMerger",
    "TowerOptions",
    "VisionEncoder",
    "build_encoder",
    "custom_config",
    "list_encoders",
    "plan_vision_config",
    "register_encoder",
    "swap_processor",
    "swap_vision_tower",
]

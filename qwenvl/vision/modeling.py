"""Swap the vision encoder of Qwen3-VL; the result is of ordinary Transformers classes with a custom tower."""

import copy
import logging
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeTextConfig,
    Qwen3VLTextConfig,
)

from qwenvl.errors import UserError
from qwenvl.vision.encoder import VisionEncoder, check_forward, weights_hash
from qwenvl.vision.options import QWEN, TowerOptions
from qwenvl.vision.registry import build_encoder, build_on_meta, encoder_geometry, resolve_encoder
from qwenvl.vision.tower import CustomVisionConfig, CustomVisionTower
from qwenvl.vision.trust import trust_encoder_file

logger = logging.getLogger(__name__)

EMBEDDING_SAMPLE = 4096


class CustomVisionQwen3VLConfig(Qwen3VLConfig):
    """Qwen3-VL's configuration with a custom vision part."""

    model_type = "qwen3_vl_custom_vision"
    sub_configs_defaults = {"vision_config": CustomVisionConfig, "text_config": Qwen3VLTextConfig}


class CustomVisionQwen3VLMoeConfig(Qwen3VLMoeConfig):
    """Qwen3-VL-MoE's configuration with a custom vision part."""

    model_type = "qwen3_vl_moe_custom_vision"
    sub_configs_defaults = {"vision_config": CustomVisionConfig, "text_config": Qwen3VLMoeTextConfig}


class _RunsTrustedCode:
    """`from_pretrained` runs an encoder file that the configuration names only with `trust_remote_code=True`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | None, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Load as Transformers does; raises `UserError` if the encoder is code that is not trusted."""
        if kwargs.get("trust_remote_code"):
            config = kwargs.get("config")
            if not isinstance(config, PreTrainedConfig):
                config = cls.config_class.from_pretrained(config or pretrained_model_name_or_path)
            trust_encoder_file(config.vision_config.encoder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


class CustomVisionQwen3VLForConditionalGeneration(_RunsTrustedCode, Qwen3VLForConditionalGeneration):
    """Qwen3-VL whose configuration names a custom tower."""

    config: CustomVisionQwen3VLConfig
    config_class = CustomVisionQwen3VLConfig


class CustomVisionQwen3VLMoeForConditionalGeneration(_RunsTrustedCode, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL-MoE whose configuration names a custom tower."""

    config: CustomVisionQwen3VLMoeConfig
    config_class = CustomVisionQwen3VLMoeConfig


DENSE = (CustomVisionQwen3VLConfig, CustomVisionQwen3VLForConditionalGeneration)
MOE = (CustomVisionQwen3VLMoeConfig, CustomVisionQwen3VLMoeForConditionalGeneration)
CUSTOM_CLASSES = {
    Qwen3VLConfig.model_type: DENSE,
    CustomVisionQwen3VLConfig.model_type: DENSE,
    Qwen3VLMoeConfig.model_type: MOE,
    CustomVisionQwen3VLMoeConfig.model_type: MOE,
}
CUSTOM_MODEL_TYPES = (CustomVisionQwen3VLConfig.model_type, CustomVisionQwen3VLMoeConfig.model_type)


def plan_vision_config(
    base_config: PreTrainedConfig, tower: TowerOptions, processor: ProcessorMixin
) -> CustomVisionConfig:
    """Return the configuration of a custom tower for a base model, without loading any weights.

    `processor` is the base model's: in input mode "qwen" the tower undoes its patches and normalization. Raises
    `UserError` for an option that does not fit.
    """
    _classes_for(base_config)
    spec = resolve_encoder(tower.encoder, tower.path, tower.encoder_config, tower.options)
    shape = build_on_meta(spec)
    geometry = encoder_geometry(shape)
    return CustomVisionConfig(
        encoder=spec.name,
        encoder_config=spec.config,
        encoder_weights=spec.weights,
        **spec.options.to_config(),
        preprocessing=spec.preprocessing.to_dict(),
        token_grid=None if geometry.tokens.fixed is None else list(geometry.tokens.fixed),
        prefix_tokens=geometry.tokens.prefix_tokens,
        patch_size=geometry.tokens.patch_size,
        input_mode=tower.input_mode,
        qwen_pixels=_official_pixels(processor) if tower.input_mode == QWEN else None,
        merger=tower.merger,
        hidden_size=shape.hidden_size,
        out_hidden_size=base_config.text_config.hidden_size,
    )


def custom_config(base_config: PreTrainedConfig, vision_config: CustomVisionConfig) -> PreTrainedConfig:
    """Return the base model's configuration with the custom vision part; the text part is shared, not copied."""
    config_class, _ = _classes_for(base_config)
    # A copy, since a constructor would reset the attention backends that were chosen for the text part.
    config = copy.copy(base_config)
    config.__class__ = config_class
    config.model_type = config_class.model_type
    config.vision_config = vision_config
    return config


def build_tower(vision_config: CustomVisionConfig, *, text_rms: float) -> CustomVisionTower:
    """Load the encoder, test it on one image and join it with a new merger, all in float32, the encoder frozen.

    `text_rms` is the root mean square of the language model's embeddings, to which the merger's output is scaled.
    Raises `UserError` for weights that are missing, have another hash than the configuration's, or a wrong shape.
    """
    encoder = build_encoder(vision_config.encoder_spec())
    _record_or_verify_hash(encoder, vision_config)
    size = encoder_geometry(encoder).input_size(encoder.preprocessing.height, encoder.preprocessing.width)
    features = check_forward(encoder, *size)
    tower = CustomVisionTower(vision_config, encoder)
    tower.merger.calibrate(features.float(), text_rms)
    tower.set_encoder_trainable(False)
    return tower


def swap_vision_tower(
    model: PreTrainedModel, vision_config: CustomVisionConfig, *, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Put a custom tower into a model, whose language model stays as it is; return the model, now of the custom class.

    `dtype` is that of the tower's parameters (default: the model's), as far as the encoder can compute in it. The
    encoder is frozen, the merger trainable.
    """
    _, model_class = _classes_for(model.config)
    if vision_config.out_hidden_size != model.config.text_config.hidden_size:
        raise UserError(
            f"the tower returns tokens of width {vision_config.out_hidden_size}, the language model takes "
            f"{model.config.text_config.hidden_size}; plan its configuration for this base model"
        )
    embeddings = model.get_input_embeddings().weight
    tower = build_tower(vision_config, text_rms=_rms(embeddings, model.config.text_config.initializer_range))
    dtype = model.dtype if dtype is None else dtype
    tower.hold_encoder_in(dtype)
    tower.merger.to(dtype)
    model.model.visual = tower.to(embeddings.device)
    # The custom class differs from the official one by its configuration class only. A second model to move the parts
    # into could not be built if DeepSpeed has partitioned this one.
    model.__class__ = model_class
    model.config = model.model.config = custom_config(model.config, vision_config)
    return model.train(model.training)


def _classes_for(config: PreTrainedConfig) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    classes = CUSTOM_CLASSES.get(config.model_type)
    if classes is None:
        raise UserError(
            f"a custom vision encoder needs a Qwen3-VL base model (dense or MoE), got a {config.model_type}; give "
            "--model_name_or_path a Qwen3-VL such as Qwen/Qwen3-VL-4B-Instruct"
        )
    return classes


def _rms(weight: nn.Parameter, default: float) -> float:
    """Return the root mean square of a sample of embedding rows; `default` if this process holds none of them."""
    if weight.numel() == 0 or weight.device.type == "meta":
        return default
    step = max(1, weight.shape[0] // EMBEDDING_SAMPLE)
    return weight.detach()[::step].float().square().mean().sqrt().item()


def _record_or_verify_hash(encoder: VisionEncoder, vision_config: CustomVisionConfig) -> None:
    """Record the hash of named weights, or verify one that is recorded already."""
    if vision_config.encoder_weights is None:
        return
    found, recorded = weights_hash(encoder), vision_config.encoder_sha256
    if recorded is not None and recorded != found:
        raise UserError(
            f"{vision_config.encoder_weights}: these are not the weights that the tower was trained with (SHA-256 "
            f"{found[:12]}..., expected {recorded[:12]}...); give --custom_vision_pretrained_path the original ones"
        )
    vision_config.encoder_sha256 = found


def _official_pixels(processor: ProcessorMixin) -> dict[str, Any]:
    """Return the patches and normalization of the official image and video processors, which must agree."""
    if not isinstance(processor.image_processor, Qwen2VLImageProcessor):
        found = type(processor.image_processor).__name__
        raise UserError(f"--custom_vision_input qwen needs Qwen3-VL's own image processor, got {found}")

    def settings(part: Any) -> dict[str, Any]:
        return {
            "patch_size": part.patch_size,
            "temporal_patch_size": part.temporal_patch_size,
            "merge_size": part.merge_size,
            "mean": list(part.image_mean),
            "std": list(part.image_std),
        }

    image, video = settings(processor.image_processor), settings(processor.video_processor)
    if image != video:
        raise UserError(
            f"--custom_vision_input qwen: the base model's image processor ({image}) and video processor ({video}) "
            "normalize differently, so the tower cannot undo both; use --custom_vision_input native"
        )
    return image


for _config_class, _model_class in (DENSE, MOE):
    AutoConfig.register(_config_class.model_type, _config_class)
    AutoModelForImageTextToText.register(_config_class, _model_class)

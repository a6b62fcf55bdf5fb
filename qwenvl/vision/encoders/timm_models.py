"""Wrap the models of timm as timm:NAME: any ViT, Swin, ConvNeXt or ResNet, by its feature map."""

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from qwenvl.errors import UserError
from qwenvl.vision.encoder import EncoderSpec, VisionEncoder
from qwenvl.vision.hub import UNREADABLE, find_file, missing_package, missing_weights, read_settings
from qwenvl.vision.options import LAST_LAYER, EncoderOptions
from qwenvl.vision.preprocessing import UNKNOWN, Preprocessing
from qwenvl.vision.registry import register_encoder

EXTRA = "timm"
WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
# Lanczos has no tensor form; bicubic is the closest to it.
FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear", "nearest": "nearest", "lanczos": "bicubic"}
# timm's names of resize policies; "border" is "pad" if nothing is cropped after it.
POLICIES = {"center": "crop", "squash": "squash", "border": "pad"}
OVERRULED = ("num_classes", "pretrained", "pretrained_cfg_overlay")
PREPROCESSING = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


@register_encoder("timm:")
class TimmEncoder(VisionEncoder):
    """A timm model without its classifier; the configuration is {"architecture": NAME, "model_args": {...}}.

    Its "pretrained_cfg" holds the values of the weights' own preprocessing that differ from timm's for that name. The
    layers of a ViT are its blocks; those of the others are their stages, each with its own width and stride.
    """

    supported_options = frozenset({"layer", "final_norm", "keep_prefix_tokens"})

    def __init__(self, model: nn.Module, options: EncoderOptions) -> None:
        super().__init__()
        self.model = model
        self.layer = options.layer
        self.final_norm = options.final_norm
        self.is_vit = getattr(model, "num_prefix_tokens", None) is not None
        stages = model.feature_info
        if -options.layer > len(stages):
            raise UserError(
                f"{type(model).__name__}: layer {options.layer} of {len(stages)}; expected -1 to -{len(stages)}"
            )
        self.hidden_size = stages[options.layer]["num_chs"]
        self.patch_size = stages[options.layer]["reduction"]
        self.dropped_tokens = model.num_prefix_tokens if self.is_vit else 0
        if options.keep_prefix_tokens:
            self.prefix_tokens, self.dropped_tokens = self.dropped_tokens, 0
        settings = model.pretrained_cfg
        # timm builds a model of fixed size for the requested size; the others take any size.
        self.any_size = not settings["fixed_input_size"]
        self.preprocessing = _preprocessing(settings, options)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixel values (B, 3, h, w) into (B, N, D_vis); feature maps are read row by row."""
        if self.layer == LAST_LAYER and self.final_norm is None:
            features = self.model.forward_features(pixel_values)
            if self.is_vit:
                return features[:, self.dropped_tokens :]
            return self._tokens(features, getattr(self.model, "output_fmt", "NCHW"))
        index = len(self.model.feature_info) + self.layer
        wanted: dict[str, Any] = {"indices": [index], "norm": bool(self.final_norm), "intermediates_only": True}
        if not self.is_vit:
            return self._tokens(self.model.forward_intermediates(pixel_values, **wanted)[0], "NCHW")
        output = self.model.forward_intermediates(
            pixel_values, **wanted, output_fmt="NLC", return_prefix_tokens=self.prefix_tokens > 0
        )[0]
        return torch.cat([output[1], output[0]], dim=1) if isinstance(output, tuple) else output

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass; Transformers sets it on every module that has it."""
        return getattr(self.model, "grad_checkpointing", False)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.model.set_grad_checkpointing(enable)

    @staticmethod
    def _tokens(features: torch.Tensor, layout: str) -> torch.Tensor:
        """Flatten a map (B, D, h, w), or (B, h, w, D) for NHWC, to (B, N, D)."""
        return features.flatten(1, 2) if str(layout).endswith("NHWC") else features.flatten(2).transpose(1, 2)

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSpec:
        """Return the architecture, with the weights at `path` (file, folder or hub name), or timm's own."""
        name = _check_name(argument)
        if path is None:
            settings = _timm().get_pretrained_cfg(name)
            path = None if settings is None else settings.hf_hub_id
            if path is None:
                raise UserError(
                    f"timm has no weights for {argument}; give --custom_vision_pretrained_path a file of them"
                )
            return EncoderSpec({"architecture": name}, weights=path)
        return EncoderSpec({"architecture": name, **_saved_settings(path)}, weights=path)

    @classmethod
    def build(cls, config: dict, options: EncoderOptions, weights: str | None) -> VisionEncoder:
        """Create the model without classifier; weights are renamed by timm and must then match exactly."""
        name = _check_name(config["architecture"])
        arguments = dict(config.get("model_args", {}))
        settings = _timm().get_pretrained_cfg(name)
        fixed = settings is not None and settings.fixed_input_size
        if fixed and options.input_size is not None:
            arguments["img_size"] = tuple(options.input_size)
        overlay: dict[str, Any] = {**config.get("pretrained_cfg", {}), "num_classes": 0}
        if weights is not None:
            overlay.update(state_dict=_state_dict(weights, settings), source="", custom_load=False)
        try:
            model = _timm().create_model(
                name, pretrained=weights is not None, num_classes=0, pretrained_cfg_overlay=overlay, **arguments
            )
        except (RuntimeError, TypeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"timm:{name} cannot be built with {arguments}, weights {weights}: {reason}") from error
        model.pretrained_cfg.pop("state_dict", None)
        if fixed and "img_size" in arguments:
            side = arguments["img_size"]
            height, width = (side, side) if isinstance(side, int) else side
            model.pretrained_cfg["input_size"] = (3, height, width)
        return cls(model, options)


def _timm() -> ModuleType:
    """Import timm on demand, since it is an optional package."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise missing_package("timm", EXTRA) from None


def _check_name(name: str) -> str:
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0].lower(), timm.list_models(), n=5, cutoff=0.4)
        raise UserError(f"timm {timm.__version__} has no model {name!r}; closest: {', '.join(near) or 'none'}")
    return name


def _saved_settings(path: str) -> dict:
    """Read architecture and preprocessing of the weights at `path` from the config.json of timm, if there is one."""
    saved = read_settings(path, "config.json")
    # Older files have the settings at the top.
    settings = saved.get("pretrained_cfg", saved)
    arguments = saved.get("model_args") or {}
    for name, section in (("pretrained_cfg", settings), ("model_args", arguments)):
        if not isinstance(section, dict):
            raise UserError(f"{path}: {name} in config.json is {section!r}; expected a JSON object")
    found = {key: settings[key] for key in PREPROCESSING if settings.get(key) is not None}
    for key in ("input_size", "mean", "std"):
        if key in found and not _is_three_numbers(found[key]):
            raise UserError(f"{path}: {key} in config.json is {found[key]}; expected three numbers")
    if "crop_pct" in found and not (isinstance(found["crop_pct"], int | float) and found["crop_pct"] > 0):
        raise UserError(f"{path}: crop_pct in config.json is {found['crop_pct']}; expected a number above 0")
    # The number of classes and the source of the weights do not matter here.
    arguments = {key: value for key, value in arguments.items() if key not in OVERRULED}
    parts = {"model_args": arguments, "pretrained_cfg": found}
    return {key: value for key, value in parts.items() if value}


def _is_three_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(number, int | float) for number in value)


def _preprocessing(settings: dict, options: EncoderOptions) -> Preprocessing:
    """Translate timm's settings: resize to size / crop_pct, with the aspect kept or not, then crop the center."""
    height, width = settings["input_size"][-2:]
    edge = int(min(height, width) / settings["crop_pct"])
    policy = POLICIES.get(settings.get("crop_mode", "center"), UNKNOWN)
    if policy == "pad" and edge != min(height, width):
        policy = UNKNOWN
    mode = settings["interpolation"]
    if mode not in FILTERS:
        raise UserError(f"timm's interpolation {mode!r} is not supported; expected one of {', '.join(FILTERS)}")
    return Preprocessing(
        height,
        width,
        policy,
        mean=settings["mean"],
        std=settings["std"],
        interpolation=FILTERS[mode],
        resize_edge=edge if policy in ("crop", "squash") and options.input_size is None else None,
        rounded_cut=True,
    )


def _state_dict(weights: str, settings: Any) -> dict[str, torch.Tensor]:
    """Read a file of weights, from a path, a folder or the hub, without the classifier, which is not built."""
    file = Path(weights) if Path(weights).is_file() else find_file(weights, WEIGHT_FILES)
    if file is None:
        raise UserError(f"{weights}: it has no weights; expected one of {', '.join(WEIGHT_FILES)}")
    try:
        # Only tensors: a pickle can name code to run.
        state = _timm().models.load_state_dict(str(file), weights_only=True)
    except UNREADABLE as error:
        raise missing_weights(str(file), error) from error
    classifiers = (settings.classifier if settings is not None else None) or ()
    for name in (classifiers,) if isinstance(classifiers, str) else classifiers:
        for kind in ("weight", "bias"):
            state.pop(f"{name}.{kind}", None)
    return state

"""Wrap vision models of the Transformers library; the form hf:ORG/MODEL is for families without a file here."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from qwenvl.errors import UserError
from qwenvl.utils.zero3 import gathered, is_partitioned
from qwenvl.vision.encoder import EncoderSpec, VisionEncoder, error_text
from qwenvl.vision.encoders.published import default_preprocessing, published_preprocessing
from qwenvl.vision.hub import PATH_FLAG, UNREADABLE, first_line, missing_weights, read_settings
from qwenvl.vision.options import LAST_LAYER, EncoderOptions
from qwenvl.vision.preprocessing import Preprocessing
from qwenvl.vision.registry import register_encoder, registered_classes

NOT_ARCHITECTURE = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "auto_map")
NAMED_AT_MOST = 5
# Sizes of an architecture, each of which some models give as a list.
SIZES = (
    "hidden_size",
    "hidden_sizes",
    "intermediate_size",
    "num_hidden_layers",
    "depths",
    "num_attention_heads",
    "patch_size",
    "image_size",
)
# Settings of models whose tokens are not a prefix followed by the patches: ViT-MAE, YOLOS.
NOT_IN_ORDER = ("mask_ratio", "num_detection_tokens")


class TransformersEncoder(VisionEncoder):
    """Wraps a vision model of Transformers; the file of a family defines its classes and its differences.

    models: Transformers model types of the vision part -> model class. final_norm_name: attribute of the norm after the
    last layer, None if there is none. last_is_normed: whether that norm gives the published `last_hidden_state`.
    unused_heads: configuration that omits poolers, whose output is not used.
    """

    models: ClassVar[dict[str, type[PreTrainedModel]]] = {}
    final_norm_name: ClassVar[str | None] = None
    last_is_normed: ClassVar[bool] = True
    unused_heads: ClassVar[dict[str, Any]] = {}
    any_size = True
    supported_options = frozenset({"layer", "final_norm", "keep_prefix_tokens"})

    def __init__(self, model: PreTrainedModel, options: EncoderOptions) -> None:
        super().__init__()
        self.model = model
        self.layer = options.layer
        normed = options.final_norm
        self.final_norm = self.last_is_normed and self.layer == LAST_LAYER if normed is None else normed
        self.dropped_tokens = self.count_prefix_tokens(model.config)
        self.hidden_size = self.width(model.config)
        self.patch_size = self.patch(model.config)
        if options.keep_prefix_tokens:
            self.prefix_tokens, self.dropped_tokens = self.dropped_tokens, 0
        self.preprocessing = self.default_preprocessing(model.config.to_dict())
        own = getattr(model.config, "image_size", None)
        self.published_size = None if own is None else square(own)
        self._check_options(options)

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """Return how many CLS and register tokens come before the patches."""
        return 0

    @staticmethod
    def width(config: PreTrainedConfig) -> int:
        """Return the width of the features."""
        return config.hidden_size

    @staticmethod
    def patch(config: PreTrainedConfig) -> int:
        """Return how many pixels a token covers on each side."""
        size = config.patch_size
        return size if isinstance(size, int) else size[0]

    def model_inputs(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        """Return the model's arguments for pixel values (B, 3, h, w)."""
        return {"pixel_values": pixel_values}

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixel values (B, 3, h, w) into (B, N, D_vis): the chosen layer, prefix tokens first."""
        if self.layer == LAST_LAYER and self.final_norm == self.last_is_normed:
            features = self.model(**self.model_inputs(pixel_values)).last_hidden_state
        else:
            output = self.model(**self.model_inputs(pixel_values), output_hidden_states=[self.layer])
            features = output.hidden_states[self.layer]
            if self.final_norm:
                features = getattr(self.model, self.final_norm_name)(features)
        return features[:, self.dropped_tokens :]

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSpec:
        """Read the configuration and the published preprocessing at `path`; raises `UserError` for another model."""
        if Path(path).is_file():
            raise UserError(
                f"{path} is a file; {cls.__name__} is read from the folder of config.json and the weights: give "
                f"{PATH_FLAG} {Path(path).parent}"
            )
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        except StrictDataclassError as error:
            raise UserError(f"{path}: config.json is not valid: {error_text(error)}; correct the file") from error
        except Exception as error:  # a configuration computes with its values, and any may be wrong
            if Path(path).is_dir() and "auto_map" in read_settings(path, "config.json"):
                raise UserError(
                    f"{path}: its config.json names its own code (auto_map), which is not run; name a model that "
                    "Transformers has itself, or wrap it in your own encoder (docs/custom_encoder.md)"
                ) from error
            raise missing_weights(path, error, cls.card) from error
        vision = getattr(config, "vision_config", config)
        _check_sizes(vision, path)
        cls.check_model(vision, path)
        values = {key: value for key, value in vision.to_diff_dict().items() if key not in NOT_ARCHITECTURE}
        config = {**values, "model_type": vision.model_type, **cls.unused_heads}
        return EncoderSpec(config, published_preprocessing(path), path)

    @classmethod
    def check_model(cls, config: PreTrainedConfig, path: str) -> None:
        """Raise `UserError` if the class cannot be built from the model at `path`: here, one of another family."""
        if cls.models and config.model_type not in cls.models:
            raise UserError(
                f"{path} holds a {config.model_type} model, {cls.__name__} takes {', '.join(cls.models)}; "
                f"name the encoder of that family, or hf:{path}"
            )

    @classmethod
    def build(cls, config: dict, options: EncoderOptions, weights: str | None) -> VisionEncoder:
        """Build from the configuration, or load by the model class's `from_pretrained`, which maps old names."""
        model_type = config.get("model_type", next(iter(cls.models), None))
        if cls.models and model_type not in cls.models:
            raise UserError(f"{cls.__name__}: model type {model_type!r}; expected one of {', '.join(cls.models)}")
        values = {**cls.unused_heads, **{key: value for key, value in config.items() if key != "model_type"}}
        return cls(cls.load_model(model_type, values, weights), options)

    @classmethod
    def load_model(cls, model_type: str, values: dict, weights: str | None) -> PreTrainedModel:
        """Return the model with random weights, or with those at `weights`, none of which may be missing."""
        model_class = cls.models[model_type]
        config = model_class.config_class(**values)
        if weights is None:
            return model_class(config)
        return load_whole(model_class, weights, config)

    def _check_options(self, options: EncoderOptions) -> None:
        name = type(self).__name__
        layers = getattr(self.model.config, "num_hidden_layers", None)
        if layers is not None and -options.layer > layers:
            raise UserError(f"{name}: layer {options.layer} of {layers}; expected -1 (last) to -{layers} (first)")
        if self.final_norm and self.final_norm_name is None and options.final_norm is not None:
            raise UserError(f"{name} has no final norm; leave the option out")


def load_whole(model_class: Any, weights: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Load a model by `from_pretrained`, in float32; raises `UserError` if a weight is missing or has another shape."""
    try:
        model, info = model_class.from_pretrained(
            weights, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except UNREADABLE as error:
        raise missing_weights(weights, error) from error
    name = type(model).__name__
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{weights}: {len(missing)} weights of {name} are missing: {_shorten(missing)}")
    other = [f"{key} {tuple(there)} for {tuple(wanted)}" for key, there, wanted in sorted(info["mismatched_keys"])]
    if other:
        raise UserError(
            f"{weights}: {len(other)} weights have another shape than {name} of config.json: {_shorten(other)}; give a "
            "folder whose config.json and weights belong together"
        )
    return _unpartitioned(model)


def _check_sizes(config: PreTrainedConfig, path: str) -> None:
    """Raise `UserError` for sizes that no model can have, which a library would accept or fail on much later."""
    for name in SIZES:
        value = getattr(config, name, None)
        numbers = value if isinstance(value, list | tuple) else [value]
        if value is not None and not (numbers and all(type(number) is int and number > 0 for number in numbers)):
            raise UserError(f"{path}: {name} in config.json is {value}; expected positive integers")
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    both = isinstance(width, int) and isinstance(heads, int)
    if both and width % heads and getattr(config, "head_dim", None) is None:
        raise UserError(
            f"{path}: hidden_size {width} in config.json is not a multiple of num_attention_heads {heads}; correct one"
        )


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (" ..." if len(names) > NAMED_AT_MOST else "")


def _unpartitioned(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with complete weights: under ZeRO-3 `from_pretrained` leaves a share in each process.

    The encoder is tested and hashed before DeepSpeed's engine exists, which then partitions it with the rest. Can go
    once `from_pretrained` can be asked not to partition:
    https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/modeling_utils.py#L1435
    """
    parameters = list(model.parameters())
    if not any(map(is_partitioned, parameters)):
        return model
    with gathered(parameters):
        state = {name: value.detach().to(torch.float32, copy=True) for name, value in model.state_dict().items()}
    whole = type(model)(model.config).to(torch.float32)
    whole.load_state_dict(state, strict=True)
    return whole


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that the library's AutoModel takes for a configuration."""
    found = MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise UserError(f"Transformers has no plain model for {config.model_type}; give the name of a vision model")
    return found[0] if isinstance(found, tuple) else found


def square(value: int | list[int]) -> tuple[int, int]:
    """Return (height, width) of a size that a configuration gives as one number or as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _count_prefix_tokens(config: PreTrainedConfig, source: str) -> int:
    """Count the tokens of a model beyond one per patch, on the meta device.

    Raises `UserError`, naming `source`, for a model that does not return one token per patch.
    """
    height, width = square(getattr(config, "image_size", None) or 224)
    try:
        patch = TransformersEncoder.patch(config)
        with torch.device("meta"):
            tokens = _model_class(config)(config)(torch.zeros(1, 3, height, width)).last_hidden_state
        shape, patches = tuple(tokens.shape), (height // patch) * (width // patch)
    except UserError:
        raise
    except Exception as error:
        raise _no_vit(config, source, f"its tokens cannot be counted ({first_line(error)})") from error
    if len(shape) != 3 or shape[2] != getattr(config, "hidden_size", None):
        raise _no_vit(config, source, f"it returns {shape} for an image, not (1, tokens, width)")
    if shape[1] < patches:
        raise _no_vit(config, source, f"it returns {shape[1]} tokens for {patches} patches, so it merges or drops some")
    if any(hasattr(config, name) for name in NOT_IN_ORDER):
        raise _no_vit(config, source, "it shuffles its patches, or puts other tokens after them")
    return shape[1] - patches


def _no_vit(config: PreTrainedConfig, source: str, reason: str) -> UserError:
    return UserError(
        f"{source} holds a {config.model_type} model: {reason}; hf: takes vision transformers that return one token "
        "per patch, in order; for a ConvNeXt, ResNet, Swin or MAE use timm:MODEL_NAME"
    )


@register_encoder("hf:")
class AnyTransformersEncoder(TransformersEncoder):
    """A vision model of Transformers that has no file here: its `last_hidden_state`, or an inner layer's output."""

    any_size = False
    supported_options = frozenset({"layer", "keep_prefix_tokens"})

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSpec:
        """Read the model at `path`, or on the hub under the name after the colon if that is None."""
        return super().read_source(argument if path is None else path, argument)

    @classmethod
    def for_config(cls, config: dict) -> type[VisionEncoder]:
        """Return the class of the model's family if there is one."""
        families = (known for known in registered_classes() if issubclass(known, TransformersEncoder))
        return next((known for known in families if config.get("model_type") in known.models), cls)

    @classmethod
    def check_model(cls, config: PreTrainedConfig, path: str) -> None:
        """Raise `UserError` for a model without one token per patch, unless its family has its own class."""
        if cls.for_config({"model_type": config.model_type}) is cls:
            _count_prefix_tokens(config, path)

    @classmethod
    def load_model(cls, model_type: str, values: dict, weights: str | None) -> PreTrainedModel:
        """Return the model that the library's AutoModel builds for the configuration."""
        config = AutoConfig.for_model(model_type, **values)
        model_class = _model_class(config)
        return model_class(config) if weights is None else load_whole(model_class, weights, config)

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing | None:
        """Return the library's default preprocessing for the model, at the size of the configuration."""
        published = default_preprocessing(config["model_type"]) or Preprocessing(resize="squash")
        height, width = square(config.get("image_size") or (published.height, published.width))
        edge = published.resize_edge
        if edge is not None:
            edge = edge * min(height, width) // min(published.height, published.width)
        return replace(published, height=height, width=width, resize_edge=edge)

    def count_prefix_tokens(self, config: PreTrainedConfig) -> int:
        """Count the tokens that the model returns beyond its patches."""
        return _count_prefix_tokens(config, config.name_or_path or "the configuration")

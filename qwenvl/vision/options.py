"""Declare the options of a custom tower, which flags, configuration, feature cache and resume check derive from."""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args

LAST_LAYER = -1
NATIVE, QWEN = "native", "qwen"
ENCODER_RESIZE = "encoder"

InputMode = Literal["native", "qwen"]
ResizePolicy = Literal["encoder", "pad", "squash", "crop", "native", "naflex"]
MergerName = Literal["simple", "norm_linear", "mlp2"]

INPUT_MODES: tuple[str, ...] = get_args(InputMode)


def _option(
    default: Any, flag: str, help_text: str, *, changes_features: bool = False, binds_merger: bool = False
) -> Any:
    """Declare an option with its flag.

    `changes_features`: the feature cache's fingerprint holds the option itself. Size and resize policy are part of the
    preprocessing, which it holds as well. `binds_merger`: a trained merger fits only the value it was trained with.
    """
    metadata = {"flag": flag, "help": help_text, "changes_features": changes_features, "binds_merger": binds_merger}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EncoderOptions:
    """Options of an encoder; saved with the tower.

    layer: -1 is the last layer, -2 the one before. final_norm: None applies it as published after the last layer, and
    not after an inner one. keep_prefix_tokens: keep CLS and register tokens. resize: "encoder" is the published policy.
    input_size: (height, width) in pixels, None for the published one.
    """

    layer: int = _option(
        LAST_LAYER,
        "vision_layer",
        "Layer whose features are used: -1 is the last, -2 the one before.",
        changes_features=True,
        binds_merger=True,
    )
    final_norm: bool | None = _option(
        None,
        "vision_final_norm",
        "Apply the encoder's final norm (default: after the last layer only).",
        changes_features=True,
        binds_merger=True,
    )
    keep_prefix_tokens: bool = _option(
        False, "vision_prefix_tokens", "Keep CLS and register tokens.", changes_features=True, binds_merger=True
    )
    resize: ResizePolicy = _option(
        ENCODER_RESIZE, "vision_resize", "How images are resized to the input size; encoder: as published."
    )
    input_size: tuple[int, int] | None = _option(
        None, "vision_input_size", "Input size of the encoder in pixels: 518, or 518x1036 for height x width."
    )

    @classmethod
    def of_config(cls, config: Any) -> "EncoderOptions":
        """Read the options from a tower's configuration, in which JSON has turned tuples into lists."""
        values = {each.name: getattr(config, each.name) for each in fields(cls)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def to_config(self) -> dict[str, Any]:
        """Return the options in the form of a tower's configuration."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class TowerOptions:
    """A custom tower as a user describes it: name and weights of the encoder, its options, merger, input mode."""

    encoder: str = "rad_dino"
    path: str | None = None
    encoder_config: dict | None = None
    options: EncoderOptions = field(default_factory=EncoderOptions)
    merger: MergerName = _option("simple", "vision_merger", "The merger; simple: one linear layer.")
    input_mode: InputMode = _option(
        NATIVE,
        "custom_vision_input",
        "native: the encoder's own preprocessing; qwen: the official processor's pixel values.",
        changes_features=True,
    )


def _iter_options() -> Iterator[Field]:
    for kind in (EncoderOptions, TowerOptions):
        yield from (each for each in fields(kind) if "flag" in each.metadata)


OPTIONS: dict[str, Field] = {each.name: each for each in _iter_options()}
OPTION_FLAGS: dict[str, str] = {each.metadata["flag"]: name for name, each in OPTIONS.items()}
FEATURE_OPTIONS: tuple[str, ...] = tuple(name for name, each in OPTIONS.items() if each.metadata["changes_features"])
MERGER_OPTIONS: tuple[str, ...] = tuple(name for name, each in OPTIONS.items() if each.metadata["binds_merger"])


def option_flag(name: str) -> Any:
    """Return the dataclass field of an option's flag: its default and its help.

    Name and type are repeated in `ModelArguments`, where HfArgumentParser and type checkers read them; a test compares
    them with the option's.
    """
    return field(default=OPTIONS[name].default, metadata={"help": OPTIONS[name].metadata["help"]})

"""Define the contract of vision encoders: what an encoder must have, its options, and the checks.

B images, N tokens of an image, D_vis encoder width, h x w encoder input in pixels.
"""

import contextlib
import hashlib
import inspect
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from qwenvl.errors import UserError
from qwenvl.vision.options import EncoderOptions
from qwenvl.vision.preprocessing import Preprocessing, TokenRule

CONTRACT = (
    "a subclass of qwenvl.vision.VisionEncoder with `hidden_size`, `preprocessing`, `patch_size` (or its own "
    "`token_grid(height, width) -> (rows, columns)`) and `forward(pixel_values (B, 3, h, w)) -> (B, N, hidden_size)`; "
    "docs/custom_encoder.md has a complete example"
)


@dataclass(frozen=True)
class EncoderCard:
    """The entry of an encoder in the list of encoders: default weights, their sizes, and the terms of use."""

    default_path: str
    hidden_size: int
    input_size: int
    patch_size: int
    license: str
    gate: str = "open"

    @property
    def tokens(self) -> int:
        """Tokens of one image at the default input size."""
        return (self.input_size // self.patch_size) ** 2


@dataclass(frozen=True)
class EncoderSpec:
    """All that rebuilds an encoder.

    `read_source` gives what is published at a path: the architecture as `config`, the preprocessing if there is any,
    and the location of the weights (None: random ones, or those of a checkpoint). `resolve_encoder` adds the rest.
    """

    config: dict
    preprocessing: Preprocessing | None = None
    weights: str | None = None
    name: str = ""
    options: EncoderOptions = field(default_factory=EncoderOptions)


class VisionEncoder(nn.Module):
    """Base class of encoders, which map pixel values (B, 3, h, w), preprocessed as `preprocessing`, to (B, N, D_vis).

    A subclass whose keyword arguments all have defaults can be named on the command line as FILE.py:CLASS. `any_size`:
    whether it takes every multiple of `patch_size` as input. `supported_options`: those of `layer`, `final_norm` and
    `keep_prefix_tokens` that it supports.
    """

    card: ClassVar[EncoderCard | None] = None
    any_size: bool = False
    supported_options: frozenset[str] = frozenset()

    hidden_size: int
    patch_size: int
    preprocessing: Preprocessing
    prefix_tokens: int = 0
    published_size: tuple[int, int] | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode pixel values (B, 3, h, w) into features (B, N, D_vis), N = rows * columns of `token_grid(h, w)`."""
        raise NotImplementedError

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, columns) of the tokens for an input of (height, width) pixels; (1, N) if they form no grid.

        Raises `UserError` for a size that is not a multiple of the patch, unless the encoder was published with it
        (SigLIP's 384 pixels with patch 14): such a size is rounded down.
        """
        patch = self.patch_size
        uneven = height % patch or width % patch or height < patch or width < patch
        if uneven and (height, width) != self.published_size:
            near = max(patch, round(height / patch) * patch), max(patch, round(width / patch) * patch)
            raise UserError(
                f"{type(self).__name__}: input size {height}x{width} is not a multiple of the patch of {patch} pixels; "
                f"give one that is, such as {near[0]}x{near[1]}"
            )
        return TokenRule(patch, self.prefix_tokens).grid(height, width)

    @classmethod
    def read_source(cls, path: str | None, argument: str | None) -> EncoderSpec:
        """Return what is published at `path`, without its weights; `argument` follows the colon in `timm:NAME`.

        The configuration of a user-defined encoder is its keyword arguments with their current defaults.
        """
        return EncoderSpec(_default_arguments(cls), weights=path)

    @classmethod
    def for_config(cls, config: dict) -> type["VisionEncoder"]:
        """Return the class that builds this configuration: this one, unless it represents several."""
        return cls

    @classmethod
    def default_preprocessing(cls, config: dict) -> Preprocessing | None:
        """Return the preprocessing to use if none is published with the weights; None: the instance has it."""
        return None

    @classmethod
    def build(cls, config: dict, options: EncoderOptions, weights: str | None) -> "VisionEncoder":
        """Build the encoder from its configuration, with random weights or those at `weights`.

        A user-defined encoder is built as `cls(**config)` and loads a .safetensors or .pt file of its state dict,
        strictly.
        """
        try:
            encoder = cls(**config)
        except Exception as error:  # user code may raise anything
            raise UserError(
                f"{cls.__name__} cannot be built from {config or 'its defaults'}: {error_text(error)}"
            ) from error
        if weights is not None:
            _load_strictly(encoder, weights)
        return encoder


def check_contract(encoder: VisionEncoder) -> None:
    """Check the attributes of an encoder; raises `UserError` naming the one that is missing or invalid."""
    name = type(encoder).__name__
    for attribute, kind in (("hidden_size", int), ("preprocessing", Preprocessing)):
        if not isinstance(getattr(encoder, attribute, None), kind):
            raise UserError(
                f"{name} has no `{attribute}` of type {kind.__name__}; an encoder is {CONTRACT}. Set it in __init__"
            )
    if encoder.hidden_size < 1:
        raise UserError(f"{name}: `hidden_size` is {encoder.hidden_size}; expected a positive integer")
    if type(encoder).token_grid is not VisionEncoder.token_grid:
        return
    patch_size = getattr(encoder, "patch_size", None)
    if not isinstance(patch_size, int):
        raise UserError(f"{name} has neither `patch_size` nor its own `token_grid`; an encoder is {CONTRACT}")
    if patch_size < 1:
        raise UserError(f"{name}: `patch_size` is {patch_size}; expected a positive integer")


@torch.no_grad()
def check_forward(encoder: VisionEncoder, height: int, width: int) -> torch.Tensor:
    """Encode one image of noise, check shape and values of the features, and return them (1, N, D_vis).

    Raises `UserError` with what the encoder returned and what was expected.
    """
    name = type(encoder).__name__
    pixels = noise_image(encoder, height, width)
    was_training = encoder.training
    encoder.eval()
    try:
        features = encoder(pixels)
    except Exception as error:  # user code may raise anything
        raise UserError(
            f"{name}: forward of one image (1, 3, {height}, {width}) failed: {error_text(error)}"
        ) from error
    finally:
        encoder.train(was_training)
    rows, columns = encoder.token_grid(height, width)
    expected = (1, rows * columns, encoder.hidden_size)
    found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if found != expected:
        raise UserError(
            f"{name}: forward of one image (1, 3, {height}, {width}) returned {found}, expected {expected}: "
            f"(images, tokens, hidden_size), since token_grid returns {rows} x {columns} tokens"
        )
    wrong = features.numel() - int(features.isfinite().sum())
    if wrong:
        raise UserError(
            f"{name}: of the {features.numel()} features of one image of noise, {wrong} are infinite or NaN; check "
            "the weights, and divisions, roots and logarithms in its forward"
        )
    return features


def noise_image(
    encoder: VisionEncoder, height: int, width: int, brightness: float = 1.0, device: torch.device | None = None
) -> torch.Tensor:
    """Return an image of noise in 0..brightness, normalized for the encoder, (1, 3, height, width).

    It is the same in every call, in the precision of the encoder's pixels, and on its device if no other is given.
    """
    wanted = encoder.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (wanted.mean, wanted.std))
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * brightness
    first = next(encoder.parameters(), noise)
    return ((noise - mean) / std).to(device or first.device, pixel_dtype(encoder.parameters()))


def pixel_dtype(parameters: Iterable[torch.Tensor], default: torch.dtype = torch.float32) -> torch.dtype:
    """Return the precision in which an encoder takes pixels: that of its first floating-point parameter.

    Integers, such as quantized weights, and complex numbers are skipped.
    """
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), default)


def weights_hash(encoder: nn.Module) -> str:
    """Return the SHA-256 of an encoder's state dict: names, shapes and bytes."""
    digest = hashlib.sha256()
    state = encoder.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _default_arguments(cls: type[VisionEncoder]) -> dict:
    """Return the keyword arguments of a class with their defaults, those that JSON can hold."""
    found = {}
    for parameter in inspect.signature(cls.__init__).parameters.values():
        default = parameter.default
        with contextlib.suppress(TypeError, ValueError):
            # JSON turns tuples into lists and integer keys into text; such a default is left to the class.
            if default is not parameter.empty and json.loads(json.dumps(default)) == default:
                found[parameter.name] = default
    return found


def error_text(error: Exception) -> str:
    """Return the type and the message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _load_strictly(encoder: nn.Module, path: str) -> None:
    """Load a state dict from one file; every name and shape must match."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; {type(encoder).__name__} takes a .safetensors or .pt file of weights")
    try:
        safe = path.endswith(".safetensors")
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        encoder.load_state_dict(state, strict=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: this file is damaged, or a pickle that would run code, which is not loaded; save the state dict "
            "as .safetensors"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: these weights do not match {type(encoder).__name__}: {reason}") from error

"""Preprocess images for an encoder, and compute how many tokens an input size gives.

H x W image in pixels, h x w encoder input in pixels, B images.
"""

from dataclasses import asdict, dataclass, replace

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from qwenvl.errors import UserError

NAFLEX = "naflex"
UNKNOWN = "unknown"
RESIZE_POLICIES = ("crop", "pad", "squash", "native", NAFLEX)
KEEPS_ASPECT = ("native", NAFLEX)
DEFAULT_MIN_PIXELS = 56 * 56
DEFAULT_MAX_PIXELS = 1024 * 1024
WHITE = 255.0


@dataclass(frozen=True)
class Preprocessing:
    """The input of an encoder: size in pixels, how images are resized to it, and the normalization of RGB in 0..1.

    resize: "crop" scales the shorter side to `resize_edge` (default: the input size) and crops the center; "squash"
    ignores the aspect, and crops the center of a larger image if `resize_edge` is given; "pad" fits the whole image
    and fills the rest with the mean color; "native" keeps the aspect, with an area between `min_pixels` and
    `max_pixels`; "naflex" keeps the aspect and fills `max_pixels` as well as whole patches can (SigLIP 2, arXiv
    2502.14786). "unknown": the published policy is none of these, and a run must choose one. rounded_cut: an odd margin
    is halved to the nearest even pixel, as in torchvision, instead of rounded down, as in Transformers.
    """

    height: int = 224
    width: int = 224
    resize: str = "crop"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    resize_edge: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    rounded_cut: bool = False

    def __post_init__(self) -> None:
        if self.resize not in (*RESIZE_POLICIES, UNKNOWN):
            raise UserError(f"resize policy {self.resize!r}: expected one of {', '.join(RESIZE_POLICIES)}")
        if not all(isinstance(side, int) and side > 0 for side in (self.height, self.width)):
            raise UserError(f"input size {self.height}x{self.width} of a Preprocessing: expected two positive integers")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3:
                raise UserError(f"{name} {values} of a Preprocessing: expected three numbers, for red, green and blue")
            object.__setattr__(self, name, values)

    @property
    def keeps_aspect(self) -> bool:
        """Whether images of different shapes give inputs of different sizes."""
        return self.resize in KEEPS_ASPECT

    def to_dict(self) -> dict:
        """Return what `Preprocessing(**values)` rebuilds this from, as JSON can hold it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class TokenRule:
    """The tokens of an input: always `fixed` (rows, columns), or one per patch.

    With prefix tokens the tokens form no grid, and count as one row.
    """

    patch_size: int
    prefix_tokens: int = 0
    fixed: tuple[int, int] | None = None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, columns) of tokens for an input of (height, width) pixels."""
        if self.fixed is not None:
            return self.fixed
        rows, columns = height // self.patch_size, width // self.patch_size
        return (1, self.prefix_tokens + rows * columns) if self.prefix_tokens else (rows, columns)


@dataclass(frozen=True)
class Geometry:
    """Map an image's size to the encoder's input size and its token grid; shared by the processor and the tower."""

    preprocessing: Preprocessing
    tokens: TokenRule

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the encoder's input size (h, w) in pixels for an image of (height, width) pixels."""
        wanted = self.preprocessing
        if not wanted.keeps_aspect:
            return wanted.height, wanted.width
        patch = self.tokens.patch_size
        max_pixels = DEFAULT_MAX_PIXELS if wanted.max_pixels is None else wanted.max_pixels
        if wanted.resize == NAFLEX:
            return get_image_size_for_max_num_patches(height, width, patch, max(1, max_pixels // patch**2))
        min_pixels = DEFAULT_MIN_PIXELS if wanted.min_pixels is None else wanted.min_pixels
        try:
            height, width = smart_resize(height, width, patch, min_pixels, max_pixels)
        except ValueError as error:
            raise UserError(
                f"an image of {width}x{height} pixels cannot keep its aspect: {error}; choose --vision_resize pad, "
                "squash or crop"
            ) from None
        return max(height, patch), max(width, patch)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (rows, columns) of tokens that an image of (height, width) pixels takes."""
        return self.tokens.grid(*self.input_size(height, width))

    def with_limits(self, min_pixels: int | None, max_pixels: int | None) -> "Geometry":
        """Return the geometry with other area limits, which have an effect only if the aspect is kept."""
        return replace(self, preprocessing=replace(self.preprocessing, min_pixels=min_pixels, max_pixels=max_pixels))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to which an image of (height, width) pixels is resized before it is cropped or padded."""
        wanted = self.preprocessing
        size = self.input_size(height, width)
        if wanted.resize == "crop":
            return _covering_size((height, width), _size_before_cut(size, wanted))
        if wanted.resize == "squash":
            return _size_before_cut(size, wanted)
        return _fitting_size((height, width), size) if wanted.resize == "pad" else size

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert images (B, 3, H, W) in 0..255, uint8 or float, to the encoder's input (B, 3, h, w), float32."""
        wanted = self.preprocessing
        full_size = pixels.shape[-2:]
        size = self.input_size(*full_size)
        pixels = self._resize(pixels, self.resized_size(*full_size))
        if wanted.resize in ("crop", "squash"):
            pixels = _crop_center(pixels, size, wanted.rounded_cut)
        mean = torch.tensor(wanted.mean, device=pixels.device).view(3, 1, 1) * WHITE
        std = torch.tensor(wanted.std, device=pixels.device).view(3, 1, 1) * WHITE
        pixels = (pixels.float().contiguous() - mean) / std
        return _pad(pixels, size) if wanted.resize == "pad" else pixels

    def _resize(self, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(pixels.shape[-2:]) == tuple(size):
            return pixels
        mode = InterpolationMode(self.preprocessing.interpolation)
        pixels = tv.resize(pixels, list(size), interpolation=mode, antialias=True)
        # Bicubic interpolation overshoots; the resize itself clamps integers.
        return pixels.clamp(0, WHITE) if pixels.is_floating_point() else pixels

    def to_dict(self) -> dict:
        """Return what `Geometry.from_dict` rebuilds this from, as JSON can hold it."""
        fixed = None if self.tokens.fixed is None else list(self.tokens.fixed)
        return {"preprocessing": self.preprocessing.to_dict(), "tokens": {**asdict(self.tokens), "fixed": fixed}}

    @classmethod
    def from_dict(cls, values: dict) -> "Geometry":
        """Rebuild a geometry from `to_dict`."""
        tokens = dict(values["tokens"])
        fixed = tokens.pop("fixed")
        rule = TokenRule(**tokens, fixed=None if fixed is None else tuple(fixed))
        return cls(Preprocessing(**values["preprocessing"]), rule)


def _size_before_cut(size: tuple[int, int], wanted: Preprocessing) -> tuple[int, int]:
    """Return the size to resize to: the input size, scaled so that its shorter side is `resize_edge` if given."""
    if wanted.resize_edge is None:
        return size
    height, width = (max(side, round(side * wanted.resize_edge / min(size))) for side in size)
    return height, width


def _covering_size(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of the image's aspect that covers `size`."""
    height, width = image
    to_height, to_width = size
    if height * to_width <= width * to_height:
        return to_height, max(to_width, int(to_height * width / height))
    return max(to_height, int(to_width * height / width)), to_width


def _crop_center(pixels: torch.Tensor, size: tuple[int, int], rounded: bool) -> torch.Tensor:
    """Crop the center; `rounded` as `rounded_cut` of `Preprocessing`."""
    halves = [(total - side) / 2 for total, side in zip(pixels.shape[-2:], size, strict=True)]
    top, left = (round(half) if rounded else int(half) for half in halves)
    return pixels[..., top : top + size[0], left : left + size[1]]


def _fitting_size(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the image's aspect that fits into the input size."""
    scale = min(size[0] / image[0], size[1] / image[1])
    return tuple(max(1, min(limit, round(side * scale))) for side, limit in zip(image, size, strict=True))


def _pad(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pad normalized pixels on all sides to the input size; zero is the encoder's mean color."""
    missing_rows, missing_columns = (total - side for total, side in zip(size, pixels.shape[-2:], strict=True))
    top, left = missing_rows // 2, missing_columns // 2
    return tv.pad(pixels, [left, top, missing_columns - left, missing_rows - top])

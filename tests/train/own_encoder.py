"""A self-written encoder whose layers bear the names of the language model's and of the tower's merger."""

import torch
from torch import nn

from qwenvl.vision import Preprocessing, VisionEncoder


class TileEncoder(VisionEncoder):
    """Images of 16 x 16 pixels to 2 x 2 tokens."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.patch_size = 8
        self.preprocessing = Preprocessing(height=16, width=16, resize="squash", mean=(0.5,) * 3, std=(0.25,) * 3)
        self.language_model = nn.ModuleDict({"q_proj": nn.Linear(3 * 8 * 8, hidden_size)})
        self.visual = nn.ModuleDict({"mixer": nn.Linear(hidden_size, hidden_size)})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Project each tile, (B, 3, 16, 16) -> (B, 4, D)."""
        tiles = nn.functional.unfold(pixel_values, kernel_size=8, stride=8).transpose(1, 2)
        return self.visual["mixer"](self.language_model["q_proj"](tiles))


class NestedMergerEncoder(TileEncoder):
    """The same, with a module that ends in the name of the tower's own merger."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__(hidden_size)
        self.visual = nn.ModuleDict({"mixer": nn.Linear(hidden_size, hidden_size), "merger": nn.Linear(4, 4)})


class ForgetfulEncoder(TileEncoder):
    """Images of any aspect, of whose tokens it drops one where an image is wide."""

    any_size = True

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__(hidden_size)
        self.preprocessing = Preprocessing(height=16, width=16, resize="native", min_pixels=256, max_pixels=1024)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Project each tile, (B, 3, h, w) -> (B, h * w / 64, D), or one less."""
        features = super().forward(pixel_values)
        return features[:, :-1] if pixel_values.shape[-1] > pixel_values.shape[-2] else features


class NormedEncoder(TileEncoder):
    """The same, with running statistics, which are buffers and no parameters."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__(hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Project each tile and normalize, (B, 3, 16, 16) -> (B, 4, D)."""
        return self.norm(super().forward(pixel_values).transpose(1, 2)).transpose(1, 2)


class ContrastEncoder(TileEncoder):
    """The same, of images whose contrast is first brought to one: an image of one color has none."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalize and project each tile, (B, 3, 16, 16) -> (B, 4, D)."""
        return super().forward(pixel_values / pixel_values.std(dim=(1, 2, 3), keepdim=True))


class FourierEncoder(TileEncoder):
    """The same, filtered by complex weights in the frequencies, for which there is no half precision."""

    def __init__(self, hidden_size: int = 24) -> None:
        super().__init__(hidden_size)
        self.filter = nn.Parameter(torch.ones(hidden_size // 2 + 1, dtype=torch.complex64))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Project each tile and filter, (B, 3, 16, 16) -> (B, 4, D)."""
        return torch.fft.irfft(torch.fft.rfft(super().forward(pixel_values)) * self.filter)

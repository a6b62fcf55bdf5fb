"""Map encoder features to the language model's token width, one token at a time; register mergers.

B images, N tokens of an image, T tokens in all, D_vis encoder width, D_llm text width.
"""

from collections.abc import Callable

import torch
from torch import nn

from qwenvl.errors import UserError

MERGERS: dict[str, type["SimpleVisionMerger"]] = {}


def register_merger(name: str) -> Callable[[type["SimpleVisionMerger"]], type["SimpleVisionMerger"]]:
    """Register a merger class under an exact name; raises `UserError` if the name is taken."""

    def register(cls: type["SimpleVisionMerger"]) -> type["SimpleVisionMerger"]:
        if name in MERGERS:
            raise UserError(f"merger {name!r} is already registered by {MERGERS[name].__name__}; choose another name")
        MERGERS[name] = cls
        return cls

    return register


def merger_class(name: str) -> type["SimpleVisionMerger"]:
    """Return the class of a registered merger; raises `UserError` that lists the names."""
    if name not in MERGERS:
        raise UserError(f"--vision_merger {name}: expected one of {', '.join(MERGERS)}")
    return MERGERS[name]


@register_merger("simple")
class SimpleVisionMerger(nn.Module):
    """One linear layer, `proj`, on each token: patches are not merged, so any number of tokens is valid."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(vis_hidden_size, llm_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(features)

    @torch.no_grad()
    def calibrate(self, features: torch.Tensor, target_rms: float) -> None:
        """Initialize the weights so that the output for these features (..., D_vis) has the given root mean square.

        With that of the text embeddings, the first layers change an image token as much as a text token, and the loss
        starts near that of the text alone.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        weight = self.proj.weight
        rms = self(features.to(weight.device, weight.dtype)).float().square().mean().sqrt().item()
        if rms > 0:
            weight.mul_(target_rms / rms)


@register_merger("norm_linear")
class NormLinearMerger(SimpleVisionMerger):
    """A LayerNorm before the linear layer, for encoders without a final norm, whose features can be large."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__(vis_hidden_size, llm_hidden_size)
        self.norm = nn.LayerNorm(vis_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(self.norm(features))


@register_merger("mlp2")
class Mlp2Merger(SimpleVisionMerger):
    """Linear, GELU, linear: LLaVA-1.5's connector (arXiv 2310.03744)."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__(llm_hidden_size, llm_hidden_size)
        self.hidden = nn.Linear(vis_hidden_size, llm_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(nn.functional.gelu(self.hidden(features)))


def build_merger(kind: str, vis_hidden_size: int, llm_hidden_size: int) -> SimpleVisionMerger:
    """Build a merger by name; raises `UserError` that lists the names."""
    return merger_class(kind)(vis_hidden_size, llm_hidden_size)

"""Owns the merger: encoder features to the language model's token width, one token at a time.

B pictures, N tokens of a picture, T tokens in all, D_vis encoder width, D_llm text width.
"""

import torch
from torch import nn

from qwenvl.errors import UserError


class SimpleVisionMerger(nn.Module):
    """One linear layer, `proj`, on each token: no patch is merged with another, so any number of tokens will do."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(vis_hidden_size, llm_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(features)

    @torch.no_grad()
    def calibrate(self, features: torch.Tensor, target_rms: float) -> None:
        """Draw the weights so that these features (..., D_vis) come out with the given root mean square.

        With the root mean square of a word's embedding, what the first layers add to a token changes it as much as it
        changes a word, and the loss starts near that of the text alone.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        weight = self.proj.weight
        rms = self(features.to(weight.device, weight.dtype)).float().square().mean().sqrt().item()
        if rms > 0:
            weight.mul_(target_rms / rms)


class NormLinearMerger(SimpleVisionMerger):
    """A LayerNorm before the linear layer, for encoders without a final norm, whose features can be large."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__(vis_hidden_size, llm_hidden_size)
        self.norm = nn.LayerNorm(vis_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(self.norm(features))


class Mlp2Merger(SimpleVisionMerger):
    """Linear, GELU, linear: LLaVA-1.5's connector (arXiv 2310.03744)."""

    def __init__(self, vis_hidden_size: int, llm_hidden_size: int) -> None:
        super().__init__(llm_hidden_size, llm_hidden_size)
        self.hidden = nn.Linear(vis_hidden_size, llm_hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, N, D_vis) or (T, D_vis) to the same with D_llm."""
        return self.proj(nn.functional.gelu(self.hidden(features)))


MERGERS: dict[str, type[SimpleVisionMerger]] = {
    "simple": SimpleVisionMerger,
    "norm_linear": NormLinearMerger,
    "mlp2": Mlp2Merger,
}


def build_merger(kind: str, vis_hidden_size: int, llm_hidden_size: int) -> SimpleVisionMerger:
    """Build a merger by name; raises `UserError` that lists the names."""
    if kind not in MERGERS:
        raise UserError(f"--vision_merger {kind}: expected one of {', '.join(MERGERS)}")
    return MERGERS[kind](vis_hidden_size, llm_hidden_size)

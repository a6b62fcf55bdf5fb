"""Which parameters a gradient can reach, and what is told where it reaches none."""

import pytest
import torch

from qwenvl.errors import UserError
from qwenvl.vision import Preprocessing, VisionEncoder
from qwenvl.vision.gradients import unreachable_parameters
from qwenvl.vision.registry import encoder_geometry
from tests.vision.small_encoders import PatchEncoder


class Detached(PatchEncoder):
    """Features that no gradient leaves."""

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values)


class NeedsNumbers(PatchEncoder):
    """Code that cannot run on the meta device."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values) * (1 + pixel_values.sum().item())


class Fixed(VisionEncoder):
    """Pixels for features, with nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.patch_size = 3, 1
        self.preprocessing = Preprocessing(4, 4, "squash")

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [PatchEncoder, NeedsNumbers])
def test_parameters_that_the_features_do_not_depend_on_are_found(kind: type[VisionEncoder], device: str) -> None:
    encoder = kind().to(device)

    assert unreachable_parameters(encoder, encoder_geometry(encoder)) == ["spare.weight", "spare.bias"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Detached, "no gradient reaches Detached .*no_grad"), (Fixed, "Fixed has no parameters to train")],
)
def test_an_encoder_that_cannot_be_trained_is_told_so(kind: type[VisionEncoder], told: str) -> None:
    encoder = kind()

    with pytest.raises(UserError, match=told):
        unreachable_parameters(encoder, encoder_geometry(encoder))

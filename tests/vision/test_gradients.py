"""Parameters that receive no gradient, and encoders that cannot be trained."""

import pytest
import torch
from torch import nn

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
    ("kind", "message"),
    [(Detached, "Detached receives no gradient .*no_grad"), (Fixed, "Fixed has no parameters to train")],
)
def test_an_encoder_that_cannot_be_trained_is_refused(kind: type[VisionEncoder], message: str) -> None:
    encoder = kind()

    with pytest.raises(UserError, match=message):
        unreachable_parameters(encoder, encoder_geometry(encoder))


class Branching(PatchEncoder):
    """A layer that only an image with bright pixels meets."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = super().forward(pixel_values)
        if pixel_values.max() > 0.5:
            features = features + self.spare(features.reshape(*features.shape[:2], -1, 2)).flatten(2)
        return features


class Shared(PatchEncoder):
    """One module that stands at two names, and one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.spare
        self.third = nn.Linear(2, 2, bias=False)
        self.third.weight = self.spare.weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = super().forward(pixel_values)
        pairs = features.reshape(*features.shape[:2], -1, 2)
        return self.third(self.again(self.spare(pairs))).flatten(2)


def test_a_way_that_code_takes_for_some_images_only_is_reached() -> None:
    encoder = Branching()

    assert unreachable_parameters(encoder, encoder_geometry(encoder)) == []


def test_half_precision_does_not_keep_an_encoder_without_half_operations_from_its_gradients() -> None:
    class Fourier(PatchEncoder):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            scale = 1 + pixel_values.sum().item()  # needs real numbers
            return torch.fft.fft(super().forward(pixel_values), dim=1).real * scale

    encoder = Fourier().to(torch.bfloat16)

    assert unreachable_parameters(encoder, encoder_geometry(encoder)) == ["spare.weight", "spare.bias"]


def test_shared_modules_and_weights_are_asked_and_left_as_they_are() -> None:
    encoder = Shared()

    assert unreachable_parameters(encoder, encoder_geometry(encoder)) == []
    assert not any(tensor.is_meta for tensor in encoder.state_dict().values())
    assert encoder.third.weight is encoder.again.weight

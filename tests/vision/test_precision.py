"""The precision in which an encoder is held: half if its code can compute in it, and warnings and errors otherwise."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwenvl.errors import UserError
from qwenvl.vision import plan_vision_config, register_encoder, registry, swap_processor, swap_vision_tower
from qwenvl.vision.encoder import check_forward, pixel_dtype
from qwenvl.vision.precision import ALL, NONE, PARAMETERS, check_works_in_half, hold
from tests.vision.small_encoders import PatchEncoder, TowerOptions, ask, random_image, with_encoder

HALF = torch.bfloat16


class Normed(PatchEncoder):
    """Running statistics are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.BatchNorm2d(8)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.spare(self.patches(pixel_values)).flatten(2).transpose(1, 2)


class Spectral(Normed):
    """The power iteration's vectors are buffers, and are multiplied with the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))


class Fourier(Normed):
    """An operation without a half-precision form, and a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = None
        self.filter = nn.Parameter(torch.randn(4, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.fft2(self.patches(pixel_values)) * self.filter
        return torch.fft.ifft2(spectrum).real.flatten(2).transpose(1, 2)


class Large(PatchEncoder):
    """Features above 65,504, the largest of float16."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values) * 1e6


KINDS = {"normed": Normed, "spectral": Spectral, "fourier": Fourier, "large": Large, "plain": PatchEncoder}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the classes for the length of a test."""
    monkeypatch.setattr(registry, "_ENCODERS", dict(registry._ENCODERS))
    for name, kind in KINDS.items():
        register_encoder(name)(kind)


def swapped(standin: Path, tower: TowerOptions, dtype: torch.dtype = HALF) -> tuple:
    """Return a model of that precision with the tower, and its inputs for one image."""
    torch.manual_seed(0)
    base, model = (
        AutoProcessor.from_pretrained(standin),
        AutoModelForImageTextToText.from_pretrained(standin, dtype=dtype),
    )
    vision_config = plan_vision_config(model.config, tower, base)
    model = swap_vision_tower(model, vision_config).eval()
    return model, ask(swap_processor(base, vision_config), [random_image(40, 64)])


@torch.no_grad()
def logits(model: nn.Module, inputs: dict, dtype: torch.dtype | None = None) -> torch.Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("tower", "held"),
    [
        (TowerOptions("normed"), PARAMETERS),
        (with_encoder("timm:resnet18"), PARAMETERS),
        (TowerOptions("spectral"), ALL),
        (TowerOptions("fourier"), NONE),
        (with_encoder("rad_dino"), PARAMETERS),
    ],
    ids=["batch norm", "timm batch norm", "spectral norm", "fourier", "vit"],
)
def test_an_encoder_is_held_in_half_precision_as_far_as_it_can_compute_in_it(
    standin: Path, tmp_path: Path, tower: TowerOptions, held: str
) -> None:
    model, inputs = swapped(standin, tower)
    encoder = model.model.visual.encoder
    assert model.config.vision_config.encoder_half == held
    assert pixel_dtype(encoder.parameters()) == (torch.float32 if held == NONE else HALF)
    for autocast in (None, HALF):
        assert logits(model, inputs, autocast).isfinite().all()

    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=HALF).eval()

    tensors = model.model.visual.encoder.state_dict()
    for name, tensor in loaded.model.visual.encoder.state_dict().items():
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]), name
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_buffers_and_complex_weights_keep_their_digits(standin: Path) -> None:
    normed = swapped(standin, TowerOptions("normed"))[0].model.visual.encoder
    assert (normed.spare.running_var.dtype, normed.patches.weight.dtype) == (torch.float32, HALF)

    weight = swapped(standin, TowerOptions("fourier"))[0].model.visual.encoder.filter
    assert weight.dtype == torch.complex64 and weight.imag.abs().sum() > 0
    encoder = Fourier()
    hold(encoder, ALL, HALF)
    assert encoder.filter.dtype == torch.complex64 and encoder.filter.imag.abs().sum() > 0


def test_an_encoder_that_needs_float32_is_said_to_and_why(standin: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qwenvl"):
        swapped(standin, TowerOptions("fourier"))
        assert "Fourier cannot compute in bfloat16 (RuntimeError: " in caplog.text
        caplog.clear()
        model, _ = swapped(standin, TowerOptions("large"), torch.float16)
    assert "Large cannot compute in float16 (its features become infinite or NaN)" in caplog.text
    assert model.config.vision_config.encoder_half == NONE


def test_what_deepspeed_would_cast_is_refused_where_it_cannot_compute() -> None:
    for kind in (PatchEncoder, Normed, Spectral):
        check_works_in_half(kind(), (16, 8), HALF)
    with pytest.raises(UserError, match="--deepspeed casts the whole encoder to bfloat16, in which Fourier cannot"):
        check_works_in_half(Fourier(), (16, 8), HALF)


def test_a_swapped_tower_is_checked_for_deepspeed_in_its_precision_alone(standin: Path) -> None:
    tower = swapped(standin, TowerOptions("fourier"), torch.float32)[0].model.visual
    tower.check_for_deepspeed(torch.float32)
    with pytest.raises(UserError, match="--deepspeed casts the whole encoder to bfloat16"):
        tower.check_for_deepspeed(HALF)


def test_pixels_take_the_precision_of_the_first_floating_point_parameter() -> None:
    whole = nn.Parameter(torch.ones(1, dtype=torch.int8), requires_grad=False)
    complex_ = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    assert pixel_dtype([whole, complex_, nn.Parameter(torch.ones(1, dtype=HALF))]) == HALF
    assert pixel_dtype([whole, complex_]) == torch.float32


@pytest.mark.parametrize("factor", ["inf", "nan"])
def test_features_that_are_no_numbers_are_found_before_training(factor: str) -> None:
    encoder = PatchEncoder()
    encoder.patches.bias.data[0] = float(factor)
    with pytest.raises(
        UserError, match="PatchEncoder: of the 64 features of one image of noise, 8 are infinite or NaN"
    ):
        check_forward(encoder, 16, 8)


class Shared(PatchEncoder):
    """One layer that stands at two names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)
        self.twice.weight = self.spare.weight
        self.again = self.spare

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.again(self.twice(self.spare(super().forward(pixel_values))))


def test_a_whole_model_with_shared_weights_in_its_encoder_is_saved_and_loads_with_them_shared(
    standin: Path, tmp_path: Path
) -> None:
    register_encoder("shared")(Shared)
    model, inputs = swapped(standin, TowerOptions("shared"), torch.float32)
    model.save_pretrained(tmp_path)

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()

    encoder = loaded.model.visual.encoder
    assert encoder.twice.weight is encoder.spare.weight and encoder.again is encoder.spare
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))

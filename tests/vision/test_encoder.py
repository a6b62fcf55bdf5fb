"""The contract of encoders: errors for user-defined classes that fail, and their saved configuration."""

from pathlib import Path

import pytest
import torch

from qwenvl.errors import UserError
from qwenvl.vision import build_encoder
from qwenvl.vision.encoder import check_contract, check_forward
from qwenvl.vision.registry import build_on_meta, resolve_encoder
from tests.vision.small_encoders import PatchEncoder

HEAD = """
import torch
from torch import nn
from qwenvl.vision import Preprocessing, VisionEncoder

class Own(VisionEncoder):
    def __init__(self, width=8, dropout=0.1, activation=nn.GELU, sizes=(16, 8)):
        super().__init__()
        self.hidden_size, self.patch_size = width, 4
        self.preprocessing = Preprocessing(*(sizes + ("squash",)))
        self.patches = nn.Conv2d(3, width, 4, 4)
        {line}
"""


def own_encoder(folder: Path, line: str = "pass") -> str:
    """Write a class whose constructor ends with `line` and return its NAME."""
    path = folder / f"own_{abs(hash(line))}.py"
    path.write_text(HEAD.format(line=line))
    return f"{path}:Own"


def test_the_defaults_of_a_user_defined_class_that_json_can_hold_are_its_configuration(tmp_path: Path) -> None:
    spec = resolve_encoder(own_encoder(tmp_path))

    # Of a tuple JSON would make a list.
    assert spec.config == {"width": 8, "dropout": 0.1}


@pytest.mark.parametrize("call", ["item", "numpy"])
def test_code_that_needs_real_numbers_can_be_asked_for_its_sizes(tmp_path: Path, call: str) -> None:
    name = own_encoder(tmp_path, f"self.rates = [rate.{call}() for rate in torch.linspace(0, 0.1, 3)]")

    with torch.device("meta"):
        assert build_encoder(resolve_encoder(name)).hidden_size == 8
    assert build_on_meta(resolve_encoder(name)).hidden_size == 8
    assert build_encoder(name).rates[0] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise ValueError('depth 3 is odd')", "cannot be built from .*ValueError: depth 3 is odd"),
        ("open('/nowhere/at/all')", "cannot be built from .*FileNotFoundError"),
        ("self.missing.weight", "cannot be built from .*AttributeError"),
    ],
)
def test_a_constructor_that_fails_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_encoder(own_encoder(tmp_path, line))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AttributeError("no layer 3"), "failed: AttributeError: no layer 3$"),
        (AssertionError(), "failed: AssertionError$"),
        (NotImplementedError(), "failed: NotImplementedError$"),
    ],
)
def test_a_forward_that_fails_is_named_with_the_type_of_the_error(error: Exception, message: str) -> None:
    class Failing(PatchEncoder):
        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(UserError, match=message):
        check_forward(Failing(), 16, 8)


@pytest.mark.parametrize("attribute", ["hidden_size", "patch_size"])
def test_sizes_of_an_encoder_must_be_positive(attribute: str) -> None:
    encoder = PatchEncoder()
    check_contract(encoder)
    setattr(encoder, attribute, 0)
    with pytest.raises(UserError, match=f"PatchEncoder: `{attribute}` is 0; expected a positive integer"):
        check_contract(encoder)

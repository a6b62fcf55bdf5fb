"""Tests of the command that builds a model of real size: it offers the sizes that can be built."""

import pytest

from qwenvl.bench.real_shape import SHAPES
from qwenvl.errors import UserError
from qwenvl.tools.real_shape import main


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_can_be_named(shape: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("qwenvl.bench.real_shape.build_real_shape", lambda folder, shape: f"{folder}/{shape}")
    assert main(["some", shape]) == 0
    assert capsys.readouterr().out == f"some/{shape}\n"


def test_an_unknown_shape_is_refused_with_those_that_can_be_built() -> None:
    with pytest.raises(UserError, match=", ".join(f"'?{shape}'?" for shape in sorted(SHAPES))):
        main(["folder", "none"])

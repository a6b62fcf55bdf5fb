"""Tests of the command that builds a stand-in model: its options reach the builder, and the folder is printed."""

import pytest

from qwenvl.tools.standin import main


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ([], {}),
        (["--seed", "3", "--moe", "--hidden_size", "96"], {"seed": 3, "moe": True, "hidden_size": 96}),
        (["--thinking"], {"thinking": True}),
    ],
)
def test_the_options_reach_the_builder(
    flags: list[str], changed: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = {}
    monkeypatch.setattr(
        "qwenvl.bench.standin.build_standin", lambda folder, **options: given.update(options) or f"{folder}/model"
    )
    assert main(["some", *flags]) == 0
    assert given == {"seed": 0, "moe": False, "thinking": False, "hidden_size": 64} | changed
    assert capsys.readouterr().out == "some/model\n"

"""Tests of the command that builds a synthetic MIMIC-CXR tree."""

from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.synthetic_mimic import main


def test_the_tree_is_built_as_asked_and_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--out", str(tmp_path / "tree"), "--studies", "3", "--film_size", "32", "--zip_reports"]) == 0
    output = capsys.readouterr().out
    assert "studies" in output and str(tmp_path / "tree") in output
    assert list((tmp_path / "tree").rglob("mimic-cxr-reports.zip")) and list((tmp_path / "tree").rglob("*.jpg"))


def test_a_number_of_studies_that_is_not_positive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--studies"):
        main(["--out", str(tmp_path / "tree"), "--studies", "0"])
    assert not (tmp_path / "tree").exists()

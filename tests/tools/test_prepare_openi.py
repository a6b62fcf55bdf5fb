"""Tests of the command that converts IU X-Ray: its flags reach the conversion, and the summary is printed."""

from pathlib import Path

import pytest

from qwenvl.medical.openi.prepare import OpeniSource, SplitShares
from qwenvl.medical.reports import OPENI_MARK
from qwenvl.tools import prepare_openi


def test_the_flags_reach_the_conversion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    given = []
    monkeypatch.setattr(
        prepare_openi, "convert_openi", lambda *arguments: given.append(arguments) or [("studies", 1234)]
    )
    flags = ["--reports", "r.tgz", "--images", "i", "--projections", "p.csv", "--valid_percent", "5", "--seed", "7"]
    assert prepare_openi.main([*flags, "--out", "folder", "--overwrite", "--target", "impression"]) == 0
    ((source, out, options, shares, overwrite),) = given
    assert source == OpeniSource("r.tgz", "i", "p.csv") and out == Path("folder") and overwrite
    assert shares == SplitShares(5.0, 20.0, 7)
    assert options.report == prepare_openi.report_options(
        prepare_openi.build_parser().parse_args([*flags, "--target", "impression"]), OPENI_MARK
    )
    assert capsys.readouterr().out == "IU X-Ray -> folder\n  studies  1,234\n"

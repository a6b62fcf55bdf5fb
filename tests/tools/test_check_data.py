"""Tests of the command of the pre-flight check: it prints the report and returns whether there are problems."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from qwenvl.tools.check_data import main


class _Result(NamedTuple):
    num_problems: int

    def sections(self) -> Iterator[str]:
        yield "first part"
        yield "second part"


@pytest.mark.parametrize(("num_problems", "code"), [(0, 0), (3, 1)])
def test_the_report_is_printed_and_problems_give_exit_code_1(
    num_problems: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = []
    monkeypatch.setattr("qwenvl.check.data.check_data", lambda flags: given.append(flags) or _Result(num_problems))
    assert main(["--dataset_use", "some.json", "--out", "folder", "--processes", "2"]) == code
    assert capsys.readouterr().out == "first part\nsecond part\n"
    (flags,) = given
    assert (flags.data.dataset_use, flags.check.out, flags.sharding.processes) == ("some.json", "folder", 2)

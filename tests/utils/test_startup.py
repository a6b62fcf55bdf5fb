"""Tests of answering `--help` without garbage collection."""

import atexit
import gc
import sys
from collections.abc import Iterator

import pytest

from qwenvl.utils.startup import answer_help_without_collection


@pytest.fixture(autouse=True)
def collection_is_on_again() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("arguments", "collects"),
    [(["--help"], False), (["--out", "x", "-h"], False), (["--out", "help"], True), ([], True)],
)
def test_only_a_process_that_answers_help_collects_no_garbage(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], collects: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)

    answer_help_without_collection()

    assert gc.isenabled() == collects
    assert at_exit == ([] if collects else [gc.freeze])

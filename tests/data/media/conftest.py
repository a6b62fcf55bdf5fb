"""Fixtures that choose the library by which videos are read."""

import sys
from collections.abc import Iterator

import pytest

from qwenvl.data.media import video_readers


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Let the test make the process's choice of a video reader again, and the next one too."""
    video_readers._choose_reader.cache_clear()
    yield
    video_readers._choose_reader.cache_clear()


@pytest.fixture(params=["decord", "PyAV"])
def video_library(request: pytest.FixtureRequest, fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of the library by which the test reads videos: one after the other."""
    if request.param == "decord":
        pytest.importorskip("decord")
    else:
        monkeypatch.setitem(sys.modules, "decord", None)
    return request.param

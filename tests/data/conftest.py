"""Records and processors that the tests of the data path share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoProcessor, ProcessorMixin

from qwenvl.bench.standin import build_standin
from qwenvl.data.annotations import Record, Turn


@pytest.fixture(scope="session")
def thinking_processor(tmp_path_factory: pytest.TempPathFactory) -> ProcessorMixin:
    """Return the processor of a stand-in whose generation prompt opens a thought; read only."""
    return AutoProcessor.from_pretrained(build_standin(tmp_path_factory.mktemp("models") / "thinking", thinking=True))


@pytest.fixture
def own_processor(standin: Path) -> ProcessorMixin:
    """Return a processor that the test may change."""
    return AutoProcessor.from_pretrained(standin)


@pytest.fixture(scope="session")
def make_record(media: Path) -> Callable[..., Record]:
    """Return a function that makes a record of turns, starting with the user's, and of files in the media folder."""

    def make(
        *texts: str, images: tuple[str, ...] = (), videos: tuple[str, ...] = (), system: str | None = None
    ) -> Record:
        turns = [] if system is None else [Turn("system", system)]
        turns += [Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
        return Record(
            "test.json",
            0,
            tuple(turns),
            tuple(str(media / name) for name in images),
            tuple(str(media / name) for name in videos),
        )

    return make


@pytest.fixture(scope="session")
def every_kind(make_record: Callable[..., Record]) -> dict[str, Record]:
    """Return a record of every kind that training can meet, by its name."""
    return {
        "image": make_record("<image>What is shown?", "A red circle.", images=("red.png",)),
        "two images": make_record("<image><image>Compare.", "Two.", images=("wide.png", "tall.png")),
        "images in two turns": make_record(
            "<image>This?", "Grey.", "And <image> this?", "Red.", images=("grey.png", "red.png")
        ),
        "video": make_record("<video>What happens?", "A ball moves.", videos=("clip.mp4",)),
        "two videos": make_record("<video> or <video>?", "Both.", videos=("clip.mp4", "clip.mp4")),
        "image and video": make_record(
            "<video>then<image>What?", "It moves.", images=("tall.png",), videos=("clip.mp4",)
        ),
        "text": make_record("Say yes.", "Yes."),
        "system": make_record("Say no.", "No.", system="You answer briefly."),
        "many turns": make_record("One?", "1", "Two?", "2\n\n  two", "Three?", "3"),
        "unicode": make_record("  Größe  der Lunge?\r\n", "Normal – 12 cm\u00b2, e\u0301galement.\t\tIt's \U0001fac1."),
    }

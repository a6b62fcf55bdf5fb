"""Fixtures that all tests share: a stand-in model, its processor and a few small media."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader
from transformers import AutoProcessor, ProcessorMixin

from demo.media import draw_shapes, moving_ball, write_video
from qwenvl.bench.standin import build_standin

pytest_plugins = ["tests.trained_run"]

SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="session")
def usual_signal_handlers() -> None:
    """Heed the signals that `nohup`, or the background of a script, has had ignored, and let PyTorch watch its workers.

    It installs that watch once a process, with the first of them.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    next(iter(DataLoader([0], num_workers=1)))


@pytest.fixture(autouse=True)
def same_signal_handlers(usual_signal_handlers: None) -> Iterator[None]:
    """Let no test leave its signal handlers to the next: a run that fails in this process sets them for its end."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Qwen3-VL (dense, Instruct, tied head) with random weights; read only."""
    return build_standin(tmp_path_factory.mktemp("models") / "standin")


@pytest.fixture(scope="session")
def processor(standin: Path) -> ProcessorMixin:
    """Return the stand-in's processor; read only: a test that changes limits loads its own."""
    return AutoProcessor.from_pretrained(standin)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of small media; sizes are width x height.

    red.png 64x64, wide.png 160x96, tall.png 64x128, grey.png (mode L) 80x80, clip.mp4 64x64 with 16 frames at 8 fps.
    """
    folder = tmp_path_factory.mktemp("media")
    draw_shapes((64, 64), [("circle", "red", (8, 8, 40, 40))]).save(folder / "red.png")
    draw_shapes((160, 96), [("square", "green", (20, 20, 60, 60)), ("triangle", "blue", (90, 30, 150, 90))]).save(
        folder / "wide.png"
    )
    draw_shapes((64, 128), [("triangle", "orange", (4, 60, 60, 120))], background="black").save(folder / "tall.png")
    draw_shapes((80, 80), [("square", "grey", (16, 16, 64, 64))]).convert("L").save(folder / "grey.png")
    write_video(folder / "clip.mp4", moving_ball((64, 64), 16), fps=8)
    return folder

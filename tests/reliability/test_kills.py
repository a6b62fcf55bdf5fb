"""A short round of the kill harness, and tests that it sees what it is there to see."""

import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.reliability.faults import break_file
from tests.reliability.rounds import KillRounds, Tally
from tests.reliability.starts import Ending, ForkServer
from tests.reliability.table import BEGIN, END, format_tally, write_table

SEED = 1636  # SIGKILL in an evaluation, SIGTERM at the start, SIGINT in a step, SIGKILL in a save


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("reliability")
    with ForkServer(folder) as server:
        yield KillRounds(folder, server, seed=SEED, tally=Tally(), launcher=False, faults=False)


def test_a_run_that_is_killed_four_times_ends_as_the_one_that_was_not(rounds: KillRounds):
    rounds.play(kills=4)
    assert (rounds.tally.lost, rounds.tally.wrong) == ([], [])
    assert rounds.tally.total >= 3  # a planned moment may not come in what is left of a run
    assert rounds.tally.resumes == rounds.tally.total
    assert rounds.tally.tracebacks == []


def test_another_weight_and_another_step_are_seen(rounds: KillRounds, tmp_path: Path):
    reference = rounds.reference
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (copy / name).write_bytes((reference / name).read_bytes())
    assert rounds.compare(copy) is None
    state = (copy / "trainer_state.json").read_text()
    (copy / "trainer_state.json").write_text(state.replace('"global_step": 24', '"global_step": 25'))
    assert "trained the steps" in rounds.compare(copy)
    (copy / "trainer_state.json").write_text(state)
    weights = bytearray((copy / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "adapter_model.safetensors").write_bytes(weights)
    assert rounds.compare(copy).startswith("1 of ")


def test_an_ending_is_read_from_what_the_program_said():
    stopped = Ending(0, True, "10:00:00 step 5 of 24: loss 1\n10:00:00 step 6 of 24: loss 1\nstopped by SIGTERM after")
    assert (stopped.first_step, stopped.was_stopped, stopped.is_finished) == (5, True, False)
    assert Ending(0, False, "the trained model is in out").is_finished
    assert not Ending(1, False, "the trained model is in out").is_finished
    assert Ending(-9, True, "").first_step is None


def test_every_way_to_break_a_file_changes_it(tmp_path: Path):
    seen = set()
    for seed in range(40):
        (tmp_path / "file").write_bytes(b"content of a checkpoint")
        seen.add(break_file(tmp_path, random.Random(seed)).split()[-1])
        assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() != b"content of a checkpoint"
    assert seen == {"half", "zeroed", "empty", "deleted", "garbage"}


def test_the_table_goes_between_its_marks(tmp_path: Path):
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    tally = Tally(
        kills=Counter({(signal.SIGKILL.name, "save"): 3, (signal.SIGINT.name, "end"): 1}), lost=["run-001: x"]
    )
    write_table(document, format_tally(tally, seed=5, seconds=90))
    text = document.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| SIGKILL | 0 | 0 | 3 | 0 | 0 | 3 |" in text
    assert "| all | 0 | 0 | 3 | 0 | 1 | 4 |" in text
    assert "saved | 1 |" in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        write_table(document, "table")

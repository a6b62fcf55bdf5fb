import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from qwenvl.train.callbacks import LogLines, StopOnSigterm, log_line


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_line_of_the_log_is_short_and_has_every_number_that_matters() -> None:
    logs = {
        "loss": 2.2961,
        "learning_rate_merger": 1e-5,
        "padding_share": 0.0625,
        "tokens_per_second": 3764.2,
        "epoch": 1,
    }

    assert log_line(logs) == "loss 2.296, learning rate merger 1e-05, padding 6.2%, tokens/s 3764"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_step_end_then_saves_and_stops(tmp_path: Path, signum: signal.Signals) -> None:
    control, args = TrainerControl(), TrainingArguments(str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=1, max_steps=3)
    with StopOnSigterm() as callback:
        callback.on_train_begin(args, TrainerState(), control)

        callback.on_step_end(args, state, control)
        assert not control.should_training_stop
        signal.raise_signal(signum)
        callback.on_step_end(args, state, control)
        callback.on_train_end(args, TrainerState(), control)

    assert control.should_save and control.should_training_stop and callback.stopped
    assert callback.signal_name == signum.name
    signal.raise_signal(signal.SIGTERM)  # the checkpoint is whole: a second one must not end this in failure


def test_handlers_are_given_back_after_a_run_that_nobody_stopped(tmp_path: Path) -> None:
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(each) for each in signals]
    control, args = TrainerControl(), TrainingArguments(str(tmp_path), use_cpu=True)
    with StopOnSigterm() as callback:
        callback.on_train_begin(args, TrainerState(), control)
        assert signal.getsignal(signal.SIGTERM) != before[0]
        callback.on_train_end(args, TrainerState(), control)
    assert [signal.getsignal(each) for each in signals] == before


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    callback, args = StopOnSigterm(), TrainingArguments(str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, TrainerState(), TrainerControl())
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_python_could_not_raise_ends_the_run_after_the_step(tmp_path: Path) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)  # Python prints what is raised here, and goes on

    callback, control, args = StopOnSigterm(), TrainerControl(), TrainingArguments(str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, TrainerState(), control)
    Finalized()
    with pytest.raises(KeyboardInterrupt):
        callback.on_step_end(args, TrainerState(), control)


def test_without_a_progress_bar_each_entry_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, args = TrainerState(global_step=3, max_steps=9), TrainingArguments(str(tmp_path), use_cpu=True)
    with caplog.at_level(logging.INFO, "qwenvl"):
        LogLines().on_log(args, state, TrainerControl(), logs={"loss": 2.5})
    assert [record.getMessage() for record in caplog.records] == ["step 3 of 9: loss 2.5"]

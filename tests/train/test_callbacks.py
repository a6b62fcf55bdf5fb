import signal
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from qwenvl.train.callbacks import StopOnSigterm, log_line


def test_a_line_of_the_log_is_short_and_has_every_number_that_matters() -> None:
    logs = {
        "loss": 2.2961,
        "learning_rate_merger": 1e-5,
        "padding_share": 0.0625,
        "tokens_per_second": 3764.2,
        "epoch": 1,
    }

    assert log_line(logs) == "loss 2.296, learning rate merger 1e-05, padding 6.2%, tokens/s 3764"


def test_sigterm_lets_the_step_end_then_saves_and_stops(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    callback, control, args = StopOnSigterm(), TrainerControl(), TrainingArguments(str(tmp_path), use_cpu=True)
    state = TrainerState(global_step=1, max_steps=3)
    callback.on_train_begin(args, TrainerState(), control)

    callback.on_step_end(args, state, control)
    assert not control.should_training_stop
    signal.raise_signal(signal.SIGTERM)
    callback.on_step_end(args, state, control)
    callback.on_train_end(args, TrainerState(), control)

    assert control.should_save and control.should_training_stop and callback.stopped
    assert signal.getsignal(signal.SIGTERM) == before

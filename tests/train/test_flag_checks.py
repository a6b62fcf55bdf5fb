import pytest

from qwenvl.errors import UserError
from qwenvl.train.argument import parse_arguments
from qwenvl.train.flag_checks import RANGES, warn_of_worst_model

EVALUATED = ["--eval_strategy", "steps", "--eval_dataset_use", "x"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--learning_rate nan", "--learning_rate nan: give a finite number"),
        ("--learning_rate inf", "--learning_rate inf: give a finite number"),
        ("--learning_rate=-inf", "--learning_rate -inf: give a finite number"),
        ("--learning_rate=-1e-5", "--learning_rate -1e-05: give 0 or more"),
        ("--mm_projector_lr nan", "give a finite number"),
        ("--video_fps nan", "--video_fps nan: give a finite number"),
        ("--max_grad_norm -1", "--max_grad_norm -1: give 0 or more"),
        ("--num_train_epochs nan", "give a finite number"),
        ("--num_train_epochs 0", "--num_train_epochs 0 trains nothing"),
        ("--num_train_epochs -1", "--num_train_epochs -1 trains nothing"),
        ("--max_steps 0", "--max_steps 0 trains nothing"),
        ("--max_steps -2", "--max_steps -2 trains nothing"),
        ("--max_steps 2.5", "invalid int value"),
        ("--save_steps 0", "--save_steps 0: give a number above 0"),
        ("--save_steps -5", "--save_steps -5: give a number above 0"),
        ("--eval_steps 0", "--eval_steps 0: give a number above 0"),
        ("--logging_steps 0", "--logging_steps 0: give a number above 0"),
        ("--save_total_limit 0", "--save_total_limit 0: give 1 or more"),
        ("--per_device_train_batch_size 0", "give 1 or more"),
        ("--gradient_accumulation_steps 0", "give 1 or more"),
        ("--model_max_length 0", "give 1 or more"),
        ("--lora_r 0", "give 1 or more"),
        ("--lora_dropout 1", "--lora_dropout 1: give a number from 0 to below 1"),
        ("--adam_beta2 1", "from 0 to below 1"),
        ("--warmup_ratio 1.5", "from 0 to below 1"),
        ("--warmup_steps -1", "give 0 or more"),
        ("--weight_decay -0.1", "give 0 or more"),
        ("--dataloader_num_workers -1", "give 0 or more"),
        ("--seed -1", "--seed -1: give a number from 0 to below 4294967296"),
        ("--seed 4294967296", "from 0 to below 4294967296"),
        ("--neftune_noise_alpha 0", "give a number above 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(flags.split())


@pytest.mark.parametrize(
    "flags",
    [
        "--learning_rate 0",
        "--max_steps -1",
        "--num_train_epochs 0 --max_steps 3",
        "--num_train_epochs 0.5",
        "--save_steps 0.25",
        "--seed 0",
        "--lr_scheduler_type constant --warmup_ratio 0",
    ],
)
def test_a_number_at_the_edge_is_taken(flags: str) -> None:
    parse_arguments(["--use_cpu", *flags.split()])


def test_every_range_says_what_it_holds() -> None:
    for numbers in set(RANGES.values()):
        assert numbers.least not in numbers or not numbers.is_open
        assert str(numbers.least) in str(numbers)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save_strategy", "best"], "--save_strategy best needs --metric_for_best_model eval_loss"),
        (["--metric_for_best_model", "accuracy", *EVALUATED], "accuracy is not measured here; choose eval_loss"),
        (["--load_best_model_at_end", "True"], "needs --eval_strategy"),
        (["--load_best_model_at_end", "True", "--save_strategy", "no"], "needs --eval_strategy"),
        (["--load_best_model_at_end", "True", "--save_strategy", "epoch", *EVALUATED], "set --save_strategy steps"),
        (["--gradient_checkpointing", "True", "--activation_checkpointing", "False"], "are the same setting"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", "num_cycles=2"], "expected a JSON object"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", "[1]"], "expected a JSON object"),
        (
            ["--gradient_checkpointing", "True", "--gradient_checkpointing_kwargs", '{"reentrant": false}'],
            "unknown setting 'reentrant'; choose from use_reentrant",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(flags)


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "token_accuracy", "eval_token_accuracy"])
def test_every_metric_that_is_measured_can_choose_the_best_model(metric: str) -> None:
    flags = ["--load_best_model_at_end", "True", "--metric_for_best_model", metric, *EVALUATED]

    training_args = parse_arguments(["--use_cpu", "--save_steps", "5", "--eval_steps", "5", *flags])[2]

    assert training_args.greater_is_better == metric.endswith("accuracy")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model", "loss", "--greater_is_better", "True"], "loss is better when it is lower"),
        (["--metric_for_best_model", "token_accuracy", "--greater_is_better", "False"], "better when it is higher"),
        (["--metric_for_best_model", "loss", "--greater_is_better", "False"], ""),
        (["--metric_for_best_model", "token_accuracy"], ""),
        ([], ""),
    ],
)
def test_a_best_model_that_is_the_worst_is_warned_of(
    caplog: pytest.LogCaptureFixture, flags: list[str], message: str
) -> None:
    warn_of_worst_model(parse_arguments(["--use_cpu", *EVALUATED, *flags])[2])

    assert message in caplog.text
    assert bool(caplog.text) == bool(message)


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(UserError, match="--hub_token ... has no effect here"):
        parse_arguments(["--hub_token", "hf_secret"])

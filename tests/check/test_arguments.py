"""Tests of the arguments of the pre-flight check."""

import pytest

from qwenvl.check.arguments import CheckArguments, CheckFlags
from qwenvl.data.arguments import DataArguments
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.memory import Sharding


@pytest.mark.parametrize("name", ["processes", "workers"])
def test_a_number_of_processes_below_1_is_refused(name: str):
    with pytest.raises(UserError, match=f"--{name} 0: give 1 or more"):
        CheckArguments(out="x", **{name: 0})


@pytest.mark.parametrize(("data_seed", "seed"), [(None, 7), (0, 0), (3, 3)])
def test_the_order_is_that_of_training(data_seed: int | None, seed: int):
    training = TrainingArguments(output_dir="x", seed=7, data_seed=data_seed, use_cpu=True, bf16=False)
    flags = CheckFlags(ModelArguments(), DataArguments(), training, CheckArguments(out="x"), Sharding())
    assert flags.seed == seed

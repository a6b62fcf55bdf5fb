import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from qwenvl.utils.zero3 import full_numel, full_shape, gathered, is_partitioned


@pytest.fixture
def partitioned() -> torch.nn.Parameter:
    """Return a parameter as ZeRO-3 leaves it: empty, with the whole one's size beside it."""
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_id, parameter.ds_numel, parameter.ds_shape = 0, 12, torch.Size((3, 4))
    return parameter


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Return the arguments of each call of DeepSpeed's gathering."""
    seen: list[tuple] = []

    def gather(parameters: list, modifier_rank: int | None) -> nullcontext:
        seen.append((parameters, modifier_rank))
        return nullcontext()

    zero = SimpleNamespace(GatheredParameters=gather)
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(zero=zero))
    return seen


def test_a_partitioned_parameter_counts_whole(partitioned: torch.nn.Parameter) -> None:
    assert (full_numel(partitioned), full_shape(partitioned)) == (12, (3, 4))
    assert (full_numel(torch.ones(2, 3)), full_shape(torch.ones(2, 3))) == (6, (2, 3))
    assert is_partitioned(partitioned) and not is_partitioned(torch.ones(2))


def test_only_partitioned_parameters_are_gathered(partitioned: torch.nn.Parameter, calls: list[tuple]) -> None:
    with gathered([torch.ones(2), partitioned]):
        pass

    assert len(calls) == 1 and len(calls[0][0]) == 1
    assert calls[0][0][0] is partitioned


def test_changes_are_kept_only_if_they_are_announced(partitioned: torch.nn.Parameter, calls: list[tuple]) -> None:
    gathered(iter([partitioned]))
    gathered(iter([partitioned]), modified=True)

    assert [rank for _, rank in calls] == [None, 0]


def test_without_partitioned_parameters_deepspeed_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # its import would raise

    with gathered([torch.ones(2)]):
        pass

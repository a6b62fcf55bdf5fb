"""Tests of the table of rows: its names, what they refer to, and the choice among them."""

import dataclasses

import pytest

from qwenvl.bench.real_shape import SHAPES
from qwenvl.bench.rows import RECIPE, ROWS, select_rows
from qwenvl.bench.suite import _ROOT
from qwenvl.errors import UserError
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments


def test_rows_have_names_of_their_own_and_compare_with_rows_before_them() -> None:
    names = [row.name for row in ROWS]
    assert len({*names}) == len(names)
    for position, row in enumerate(ROWS):
        assert row.aim.of_row is None or row.aim.of_row in names[:position]
        assert row.shape in SHAPES
        assert any(value is not None for value in dataclasses.asdict(row.aim).values())


def test_rows_use_flags_and_files_that_there_are() -> None:
    arguments = (ModelArguments, DataArguments, TrainingArguments)
    known = {each.name for kind in arguments for each in dataclasses.fields(kind)}
    for row in ROWS:
        assert not {*RECIPE, *row.flags} - known
        for path in filter(None, (row.script, row.flags.get("deepspeed"))):
            assert (_ROOT / path).is_file()


def test_rows_are_chosen_by_name_and_shape_in_the_order_of_the_table() -> None:
    assert [row.name for row in select_rows("fp8,bf16,8b-fp8", ["4b"])] == ["bf16", "fp8"]
    assert {row.shape for row in select_rows(None, ["8b"])} == {"8b"}
    assert select_rows(None, ["4b", "8b"]) == list(ROWS)


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [("bf16,fp4", ["4b"], "--rows fp4 is unknown; choose from preset, "), ("bf16", ["8b"], "no row of --rows bf16")],
)
def test_a_choice_of_nothing_is_refused(names: str, shapes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_rows(names, shapes)

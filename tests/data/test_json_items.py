"""Tests of walking over a JSON list: where it is malformed, the number of the item is told."""

import io
import json

import pytest

from qwenvl.data.json_items import JsonItems, MalformedListError

DECODE = json.JSONDecoder().raw_decode


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_the_items_are_those_of_json_whatever_the_chunks(chunk: int):
    values = [{"a": 'quote " \\ ] ü'}, [1, [2]], 12345, -1.5e3, "x", None, True, {}]
    for text in (json.dumps(values), json.dumps(values, indent=2), " [ ] \n"):
        assert [*JsonItems(io.StringIO(text), DECODE, chunk)] == json.loads(text)


@pytest.mark.parametrize(
    ("text", "num_items"), [("{}", 0), ("", 0), ("[1, 2", 1), ("[1 2]", 0), ("[1,]", 1), ("[1] 2", 1), ("[] x", 0)]
)
def test_a_malformed_list_is_refused_after_the_items_before_the_mistake(text: str, num_items: int):
    items = []
    with pytest.raises(MalformedListError):
        items += JsonItems(io.StringIO(text), DECODE)
    assert items == [1, 2][:num_items]

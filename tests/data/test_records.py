"""Tests of the record and its turns."""

import dataclasses
import pickle

import pytest

from qwenvl.data.records import Record, Turn


def test_a_record_names_its_location_as_an_editor_counts_or_else_by_its_row():
    assert Record("train.json", 12, ()).full_location == "train.json row 12"
    assert Record("train.jsonl", 12, (), location="line 13").full_location == "train.jsonl line 13"


def test_a_turn_is_supervised_unless_it_is_context():
    assert Turn("assistant", "Yes.").supervised
    assert not Turn("assistant", "Yes.", supervised=False).supervised


def test_records_are_immutable_and_survive_being_sent_to_a_worker():
    record = Record("t.json", 0, (Turn("user", "<image>?"), Turn("assistant", "Yes.", thought="Hm.")), ("/a.png",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.row = 1
    assert pickle.loads(pickle.dumps(record)) == record

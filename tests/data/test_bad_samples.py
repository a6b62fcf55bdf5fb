"""Tests of bad samples and of the tracker that counts them."""

import logging

import pytest

from qwenvl.data.bad_samples import BadSample, BadSampleTracker
from qwenvl.data.records import Record
from qwenvl.errors import UserError

ABOUT_A_FILE = BadSample("train.json", "row 3", "/a.png", "no such file")
ABOUT_TEXT = BadSample("train.json", "row 4", None, "no user turn")


def test_a_message_names_file_and_location_then_the_media_file_if_any_then_the_reason():
    assert str(ABOUT_A_FILE) == "train.json row 3: /a.png: no such file"
    assert str(ABOUT_TEXT) == "train.json row 4: no user turn"


def test_a_record_without_a_location_is_located_by_its_row():
    assert BadSample.of(Record("t.json", 7, ()), None, "empty").location == "row 7"
    assert BadSample.of(Record("t.jsonl", 7, (), location="line 8"), None, "empty").location == "line 8"


def test_the_policy_error_ends_the_run_at_the_first_sample_and_names_the_other_policy():
    tracker = BadSampleTracker("error")
    with pytest.raises(UserError, match="train.json row 3: /a.png: no such file .*--bad_sample_policy skip"):
        tracker.report(ABOUT_A_FILE)


def test_the_policy_skip_logs_and_counts_each_sample_once_however_often_it_is_reported(
    caplog: pytest.LogCaptureFixture,
):
    tracker = BadSampleTracker("skip", max_bad_samples=2)
    with caplog.at_level(logging.WARNING, "qwenvl"):
        for bad in (ABOUT_A_FILE, ABOUT_TEXT, ABOUT_A_FILE, ABOUT_TEXT):
            tracker.report(bad)
    assert tracker.samples == [ABOUT_A_FILE, ABOUT_TEXT] and tracker.count == 2
    assert [entry.getMessage().count("bad sample left out") for entry in caplog.records] == [1, 1]


def test_the_policy_skip_ends_the_run_at_one_sample_more_than_allowed():
    tracker = BadSampleTracker("skip", max_bad_samples=1)
    tracker.report(ABOUT_A_FILE)
    with pytest.raises(UserError, match="2 bad samples, more than --max_bad_samples 1.*the last one: train.json row 4"):
        tracker.report(ABOUT_TEXT)

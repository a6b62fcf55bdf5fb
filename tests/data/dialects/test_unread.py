"""Tests of the keys that are not read: they are reported, unless they hold a medium."""

from typing import Any

import pytest

from qwenvl.data.dialects.neutral import UnreadMediumError
from qwenvl.data.dialects.unread import note_unread


def unread(value: dict[str, Any], level: str = "record", has_media: bool = True) -> list[str]:
    """Return the keys of `value` that are reported where only "read" is read."""
    found: list[str] = []
    note_unread(value, {"read"}, level, found, has_media)
    return sorted(found)


def test_keys_that_hold_something_are_reported_and_read_or_empty_ones_are_not():
    assert unread({"read": 1, "mood": "good", "empty": None, "nothing": []}) == ["`mood`"]


def test_a_key_of_a_turn_or_part_is_reported_with_its_level():
    assert unread({"mood": "good"}, "turns") == ["`mood` of turns"]


@pytest.mark.parametrize("key", ["id", "split", "subject_id", "view", "labels"])
def test_keys_that_describe_a_sample_are_not_reported_even_if_they_are_file_names(key: str):
    assert unread({key: "a.png"}, has_media=False) == []


@pytest.mark.parametrize("key", ["Image", "image_path", "img_files", "videos_list", "audio_url"])
def test_a_key_that_can_only_mean_a_medium_is_refused_whatever_it_holds(key: str):
    with pytest.raises(UnreadMediumError, match=f"`{key}` of the record holds") as error:
        unread({key: "scan number 7"})
    assert error.value.key == key


@pytest.mark.parametrize(
    "held", ["a.png", "A.DCM", b"\x89PNG", {"bytes": b"x"}, {"path": "a.jpg"}, ["a.mp4"], "data:image/png;base64,AA"]
)
def test_a_file_under_the_name_of_a_medium_is_refused(held: Any):
    with pytest.raises(UnreadMediumError, match="name it `image` or `images`"):
        unread({"chest_xray": held})


def test_a_file_under_any_other_name_is_refused_only_in_a_record_without_media():
    assert unread({"source_file": "a.png"}) == ["`source_file`"]
    with pytest.raises(UnreadMediumError, match="`source_file` of the record holds"):
        unread({"source_file": "a.png"}, has_media=False)


@pytest.mark.parametrize("held", ["two frames", 3, ["ap", "lateral"], [["a.png"]], "a.png\nb.png"])
def test_text_and_numbers_under_the_name_of_a_medium_are_no_files(held: Any):
    assert unread({"frame_notes": held}) == ["`frame_notes`"]

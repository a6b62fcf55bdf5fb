"""Tests of the ways in which records give a medium."""

import base64
from typing import Any

import pytest

from qwenvl.data.dialects.media import (
    are_frames,
    decode_base64,
    decode_data_url,
    listed_media,
    read_fps,
    read_frames,
    read_medium,
)
from qwenvl.data.dialects.neutral import EmbeddedFile, FrameList, InvalidRecordError

BYTES = b"\x89PNG data"
BASE64 = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    ("value", "medium"),
    [
        ("a.png", "a.png"),
        (BYTES, EmbeddedFile(BYTES)),
        ({"path": "a.png"}, "a.png"),
        ({"path": "a.png", "bytes": None}, "a.png"),
        ({"path": "a.png", "bytes": BYTES}, EmbeddedFile(BYTES, "a.png")),
        ({"bytes": BASE64}, EmbeddedFile(BYTES)),
        ({"url": "file:///a.png", "detail": "high"}, "file:///a.png"),
    ],
)
def test_a_medium_is_a_path_a_url_or_bytes(value: Any, medium: Any):
    assert read_medium(value, "image") == medium


@pytest.mark.parametrize("value", ["", b"", 3, None, {}, {"path": ""}, {"path": "a.png", "size": 3}, {"bytes": 3}])
def test_anything_else_is_refused(value: Any):
    with pytest.raises(InvalidRecordError, match="`image` is .*expected a path"):
        read_medium(value, "image")


def test_a_list_under_a_key_is_its_media_and_a_missing_value_is_none():
    assert listed_media(["a.png", "b.png"], "image") == ["a.png", "b.png"]
    assert listed_media("a.png", "image") == ["a.png"]
    assert listed_media(None, "image") == listed_media([], "video") == []


def test_a_list_of_images_for_a_video_is_one_video_of_frames():
    assert listed_media(["a.png", "b.PNG"], "video") == [FrameList(("a.png", "b.PNG"))]
    assert listed_media(["a.mp4", "b.mp4"], "video") == ["a.mp4", "b.mp4"]
    assert listed_media([["a.png", "b.png"], "c.mp4"], "video") == [FrameList(("a.png", "b.png")), "c.mp4"]
    assert not are_frames(["a.png"])


def test_the_rate_of_frames_is_their_own_or_else_the_given_one():
    frames = ["a.png", "b.png"]
    assert read_medium({"frames": frames, "fps": 4}, "video", 2.0) == FrameList(tuple(frames), 4.0)
    assert read_medium({"frames": frames}, "video", 2.0) == FrameList(tuple(frames), 2.0)


def test_a_video_of_one_frame_is_refused():
    with pytest.raises(InvalidRecordError, match=r"a video of 1 frame\(s\), expected at least 2"):
        read_frames(["a.png"], None)


@pytest.mark.parametrize("value", [0, -1, True, "2", 10_001, float("inf")])
def test_a_rate_that_no_camera_has_is_refused(value: Any):
    with pytest.raises(InvalidRecordError, match="expected the number of frames per second"):
        read_fps(value)


def test_a_rate_is_a_number_and_a_missing_one_is_none():
    assert read_fps(25) == 25.0 and isinstance(read_fps(25), float)
    assert read_fps(None) is read_fps(float("nan")) is None


def test_base64_may_be_broken_into_lines_and_a_data_url_holds_it():
    assert decode_base64(f"{BASE64[:4]}\n {BASE64[4:]}") == BYTES
    assert decode_data_url(f"data:image/png;base64,{BASE64}") == EmbeddedFile(BYTES)


@pytest.mark.parametrize("text", ["AAA", "?", "ü"])
def test_what_is_not_base64_is_refused(text: str):
    with pytest.raises(InvalidRecordError, match="is not base64"):
        decode_base64(text)


@pytest.mark.parametrize("url", ["data:image/png,AAAA", "data:image/png;base64"])
def test_a_data_url_without_base64_is_refused(url: str):
    with pytest.raises(InvalidRecordError, match="is not a URL of the form data:image/png;base64"):
        decode_data_url(url)

"""Tests of turns whose content is a list of parts."""

import base64
from typing import Any

import pytest

from qwenvl.data.dialects.neutral import EmbeddedFile, FrameList, InvalidRecordError
from qwenvl.data.dialects.parts import PART_OPTIONS, PartMedia, read_parts


def read(*parts: Any) -> tuple[str, dict[str, list], list[str]]:
    """Return the text, the media and the unread keys of the parts of turn 2."""
    media, unread = PartMedia(), []
    text = read_parts(list(parts), 2, media, unread)
    return text, media.slots, unread


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "url": "a.png"}, "a.png"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "a.png"),
        ({"image": "a.png"}, "a.png"),
        ({"type": "image", "base64": base64.b64encode(b"x").decode()}, EmbeddedFile(b"x")),
        ({"type": "image", "index": 3}, 3),
        ({"type": "image", "index": 3.0}, 3),
        ({"type": "image"}, None),
        ({"type": "image", "text": None, "image": "a.png"}, "a.png"),
    ],
)
def test_a_part_gives_an_image_its_index_or_the_next_one(part: dict, medium: Any):
    text, slots, unread = read(part, {"type": "text", "text": " What?"})
    assert (text, slots, unread) == ("<image> What?", {"image": [medium], "video": []}, [])


def test_frames_of_a_video_may_have_a_rate():
    frames = ["a.png", "b.png"]
    for key in ("fps", "sample_fps"):
        assert read({"type": "video", "video": frames, key: 2})[1]["video"] == [FrameList(tuple(frames), 2.0)]


@pytest.mark.parametrize("option", sorted(PART_OPTIONS))
def test_an_option_of_one_part_is_refused_because_it_is_a_flag_of_the_run(option: str):
    with pytest.raises(InvalidRecordError, match=f"turn 2 sets {option} on one part"):
        read({"type": "video", "video": "a.mp4", option: 1})


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("text", "turn 2 has the part 'text', expected type text"),
        ({"type": "audio", "audio": "a.wav"}, "turn 2 has the part"),
        ({"type": "text", "text": 3}, "turn 2 has the part"),
        ({"text": "a", "image": "b"}, "turn 2 has the part"),
        ({"type": "text", "text": "a", "image": "a.png"}, "turn 2 has image in a part of type text"),
        ({"type": "image", "image": "a.png", "url": "b.png"}, "turn 2 gives one image by image and url"),
        ({"type": "image", "image": "a.png", "index": 0}, "turn 2 gives one image by image and index"),
        ({"type": "image", "index": -1}, "turn 2 has the image with index -1"),
        ({"type": "image", "index": True}, "turn 2 has the image with index True"),
        ({"type": "image", "base64": "?"}, r"turn 2 has the image '\?': '\?' is not base64"),
        ({"type": "video", "video": ["a.png"]}, r"turn 2 has the video .*a video of 1 frame"),
    ],
)
def test_a_part_that_cannot_be_read_is_refused_with_its_turn(part: Any, reason: str):
    with pytest.raises(InvalidRecordError, match=reason):
        read(part)


def test_other_keys_of_a_part_are_reported():
    assert read({"type": "text", "text": "a", "cache_control": 1})[2] == ["`cache_control` of parts"]


def test_media_of_parts_are_true_once_there_is_one():
    media = PartMedia()
    assert not media
    read_parts([{"type": "image"}], 0, media, [])
    assert media

"""Tests of what each dialect of records becomes, of what is refused, and of the account of keys that are not read."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwenvl.data.annotations import Annotations, BadSampleTracker, Record, Turn, read_annotations
from qwenvl.errors import UserError

ANSWER = {"role": "assistant", "content": "A."}
TALK = [{"role": "user", "content": "Q?"}, ANSWER]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two images and a video, of which only the image a.png is one."""
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    for name in ("b.png", "v.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def read(folder: Path, rows: list[Any]) -> Annotations:
    """Return what raw records become."""
    (folder / "t.json").write_text(json.dumps(rows))
    return read_annotations(str(folder / "t.json"), str(folder), BadSampleTracker(), str(folder / "cache"))


def only(folder: Path, **row: Any) -> Record:
    """Return what one raw record becomes."""
    (record,) = read(folder, [row]).records
    return record


def refusal(folder: Path, **row: Any) -> str:
    """Return the line that a raw record is refused with."""
    with pytest.raises(UserError) as error:
        only(folder, **row)
    assert "t.json row 0: " in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return messages of one question in parts and its answer."""
    return [{"role": "user", "content": list(parts)}, ANSWER]


# --- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{"query": "Q?", "response": "A."}, {"instruction": "Q?", "output": "A."}])
def test_history_comes_before_the_question(folder: Path, form: dict[str, str]):
    turns = only(folder, **form, history=[["Q0?", "A0."], ["Q1?", "A1."]]).turns
    assert [turn.text for turn in turns] == ["Q0?", "A0.", "Q1?", "A1.", "Q?", "A."]
    assert "expected a list of pairs" in refusal(folder, **form, history=["Q0?"])


def test_the_input_of_alpaca_goes_on_the_next_line(folder: Path):
    assert only(folder, instruction="Translate.", input="Ja", output="Yes").turns[0].text == "Translate.\nJa"


def test_only_the_completion_of_trl_is_supervised(folder: Path):
    prompt = [
        {"role": "user", "content": "Q0?"},
        {"role": "assistant", "content": "A0."},
        {"role": "user", "content": "Q?"},
    ]
    turns = only(folder, prompt=prompt, completion=[ANSWER]).turns
    assert [(turn.text, turn.supervised) for turn in turns if turn.role == "assistant"] == [
        ("A0.", False),
        ("A.", True),
    ]
    assert only(folder, prompt="Q?", completion="A.").turns == (Turn("user", "Q?"), Turn("assistant", "A."))


def test_a_record_of_two_forms_or_of_none_is_refused_with_its_keys(folder: Path):
    assert "got messages and query+response: keep one" in refusal(folder, messages=TALK, query="Q?", response="A.")
    assert "got only ['id', 'query']" in refusal(folder, id=1, query="Q?")
    assert "`chosen` is given" in refusal(folder, messages=TALK, chosen="A.", rejected="B.")


def test_the_empty_columns_of_a_table_of_several_dialects_do_not_count(folder: Path):
    turn = {"from": None, "value": None, "tool_calls": None, "loss": None, "reasoning_content": None}
    messages = [turn | each for each in TALK]
    record = only(folder, messages=messages, conversations=None, query=None, image=float("nan"), system="", tools=None)
    assert record.turns == (Turn("user", "Q?"), Turn("assistant", "A."))
    assert "both `from` and `role`" in refusal(folder, messages=[TALK[0] | {"from": "gpt"}, ANSWER])


def test_an_object_of_lists_is_a_list_of_turns(folder: Path):
    columns = {"role": ["user", "assistant"], "content": ["Q?", "A."]}
    assert only(folder, messages=columns).turns == (Turn("user", "Q?"), Turn("assistant", "A."))
    assert "lists of different lengths" in refusal(folder, messages=columns | {"role": ["user"]})


# --- what turns say besides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", [{"loss": False}, {"weight": 0}, {"loss": 0}, {"loss_scale": 0.0}])
def test_an_answer_that_is_switched_off_is_context(folder: Path, switch: dict[str, Any]):
    turns = only(folder, messages=[TALK[0], ANSWER | switch, *TALK]).turns
    assert [turn.supervised for turn in turns if turn.role == "assistant"] == [False, True]
    assert "no answer is supervised" in refusal(folder, messages=[TALK[0], ANSWER | switch])


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (ANSWER | {"weight": 0.5}, "the weight 0.5, expected true or false"),
        (ANSWER | {"loss": "no"}, "the loss 'no', expected"),
        (ANSWER | {"loss": True, "weight": 0}, "both as supervised and as not supervised"),
        ({"role": "user", "content": "x", "loss": True}, "only answers are supervised"),
        ({"role": "user", "content": "x", "reasoning_content": "y"}, "a thought or tool calls: only answers may"),
        (ANSWER | {"reasoning_content": "y", "thinking": "z"}, "expected one text"),
        (ANSWER | {"tool_calls": [{"id": 3}]}, "expected an object with the `name`"),
        (ANSWER | {"tool_calls": [{"name": "f", "arguments": "{"}]}, "which is not JSON"),
        ({"role": "function_call", "content": "call it"}, "which is not JSON"),
        ({"role": "assistant", "content": "", "reasoning_content": "y"}, "is an empty answer"),
        ({"role": "tool", "content": "<image>"}, "a tool's answer, contains the placeholder <image>"),
        (ANSWER | {"reasoning_content": "a<|im_end|>"}, "contains <|im_end|>"),
    ],
)
def test_what_a_turn_cannot_mean_is_refused(folder: Path, turn: dict[str, Any], expected: str):
    assert expected in refusal(folder, messages=[*TALK, TALK[0], turn])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_kept_apart_from_the_text(folder: Path, key: str):
    assert only(folder, messages=[TALK[0], ANSWER | {key: " Why. "}]).turns[1] == Turn("assistant", "A.", "Why.")


def test_the_system_column_is_the_first_turn(folder: Path):
    assert only(folder, messages=TALK, system="Be brief.").turns[0] == Turn("system", "Be brief.")
    with_own = [{"role": "developer", "content": "Be kind."}, *TALK]
    assert only(folder, messages=with_own).turns[0] == Turn("system", "Be kind.")
    assert only(folder, messages=with_own, system="Be kind.").turns[0] == Turn("system", "Be kind.")
    assert "both in `system` and as the first turn" in refusal(folder, messages=with_own, system="Be brief.")


CALL = {"type": "function", "function": {"name": "zoom", "arguments": {"by": 2}}}
INNER = json.dumps(CALL["function"])


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": CALL["function"]}]},
        {"role": "assistant", "tool_calls": json.dumps([CALL["function"]])},
        {"from": "function_call", "value": INNER},
        {"role": "tool_call", "content": INNER},
    ],
)
def test_calls_of_every_dialect_are_those_of_openai(folder: Path, turn: dict[str, Any]):
    tools = [{"name": "zoom"}]
    for given in (tools, json.dumps(tools), [json.dumps(tools[0])], [{"type": "function", "function": tools[0]}]):
        record = only(folder, messages=[TALK[0], turn, {"role": "observation", "content": "x"}, ANSWER], tools=given)
        assert [each.role for each in record.turns] == ["user", "assistant", "tool", "assistant"]
        assert json.loads(record.turns[1].tool_calls) == [CALL]
        assert json.loads(record.tools) == [{"type": "function", "function": {"name": "zoom"}}]


def test_calls_that_follow_each_other_become_one_turn(folder: Path):
    calls = [{"role": "tool_call", "content": INNER}] * 2
    turns = only(folder, messages=[TALK[0], ANSWER, *calls]).turns
    assert turns[1].text == "A." and json.loads(turns[1].tool_calls) == [CALL, CALL] and len(turns) == 2
    assert "with another `loss`" in refusal(folder, messages=[TALK[0], ANSWER, calls[0] | {"loss": False}])


# --- media ---------------------------------------------------------------------------------------------------------


def test_parts_show_the_images_that_their_index_names(folder: Path):
    parts = [
        {"type": "image", "index": 1},
        {"type": "text", "text": "or", "index": None},
        {"type": "image", "index": 0},
    ]
    record = only(folder, messages=user(*parts), images=["a.png", "b.png"])
    assert record.images == (str(folder / "b.png"), str(folder / "a.png"))
    assert record.turns[0].text == "<image>or<image>"
    assert "no part shows the image with index 0" in refusal(
        folder, messages=user(*parts[:2]), images=["a.png", "b.png"]
    )
    assert "index 1, but there are 1" in refusal(folder, messages=user(*parts), images=["a.png"])
    mixed = user(parts[0], {"type": "image"})
    assert "give it in all or in none" in refusal(folder, messages=mixed, images=["a.png", "b.png"])
    assert "with index -1, expected" in refusal(folder, messages=user({"type": "image", "index": -1}), image="a.png")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"image": "a.png", "text": "x"}, "expected type text, image, image_url or video"),
        ({"type": "text", "text": "x", "image": "a.png"}, "image in a part of type text"),
        ({"type": "image", "image": "a.png", "index": 0}, "gives one image by image and index"),
        ({"type": "image", "image": "a.png", "path": "b.png"}, "gives one image by image and path"),
        ({"type": "image", "image": "a.png", "mask_image": "b.png"}, "`mask_image` of the parts holds 'b.png'"),
        ({"type": "input_audio", "input_audio": {}}, "expected type text"),
        ({"audio": "a.wav"}, "expected type text"),
        ({"type": "video", "video": "v.mp4", "fps": 2.0}, "sets fps on one part"),
        ({"type": "video", "video": ["a.png", "a.png"], "fps": 0}, "fps is 0"),
        ({"type": "video", "video": ["a.png"]}, "a video of 1 frame(s)"),
        ({"type": "image_url", "image_url": {"url": "http://host/a.png"}}, "download it"),
        ({"type": "image", "base64": "?"}, "is not base64"),
    ],
)
def test_a_part_that_says_too_much_or_nothing_readable_is_refused(folder: Path, part: dict[str, Any], expected: str):
    assert expected in refusal(folder, messages=user(part, {"type": "text", "text": "Q?"}))


def test_what_is_no_file_is_no_image(folder: Path):
    os.mkfifo(folder / "pipe.png")
    for path in ("pipe.png", "/dev/zero", "."):
        assert "not a file, but a folder, a pipe or a device" in refusal(folder, messages=TALK, image=path)


def test_dashscope_parts_may_hold_frames(folder: Path):
    record = only(folder, messages=user({"video": ["a.png", "a.png"], "fps": 2}, {"text": "Q?"}))
    assert record.turns[0].text == "<video>Q?" and record.videos[0].endswith(".frames.json")


def test_a_path_with_backslashes_is_refused_with_the_path_that_is_there(folder: Path):
    (folder / "sub").mkdir()
    (folder / "sub/c.png").write_bytes(b"x")
    line = refusal(folder, messages=TALK, image="sub\\c.png")
    assert "no such file" in line and f"not by \\: {folder}/sub/c.png exists" in line
    assert "exists" not in refusal(folder, messages=TALK, image="sub\\d.png")


@pytest.mark.parametrize("nothing", [None, "", [], float("nan"), {"path": None, "bytes": None}])
def test_nothing_in_the_place_of_an_image_is_none(folder: Path, nothing: Any):
    assert only(folder, messages=TALK, image=nothing).images == ()
    assert "1 <image> in the text but 0" in refusal(folder, query="<image>Q?", response="A.", image=nothing)


@pytest.mark.parametrize(
    "row",
    [
        {"image_path": "b"},
        {"image\n2": "b.png"},
        {"Image": "b.png"},
        {"IMAGES": ["b"]},
        {"imagePaths": ["b"]},
        {"prior_image": "b.png"},
        {"frames": ["a.png", "b.png"]},
        {"xray": {"bytes": "", "path": "b.png"}},
        {"audio_file": "b"},
    ],
)
def test_a_medium_under_a_key_that_is_not_read_is_refused(folder: Path, row: dict[str, Any]):
    (key,) = row
    for rest in ({}, {"image": "a.png"}):
        line = refusal(folder, messages=TALK, **rest, **row)
        assert repr(key).strip("'") in line and " of the record holds " in line


@pytest.mark.parametrize("key", ["image", "images", "video", "image_path"])
def test_a_medium_inside_a_turn_is_refused(folder: Path, key: str):
    assert f"`{key}` of the turns holds" in refusal(folder, messages=[TALK[0] | {key: ["b.png"]}, ANSWER])


def test_a_file_under_any_key_is_refused_where_the_record_shows_nothing(folder: Path):
    assert "`source` of the record holds 'x/b.dcm'" in refusal(folder, messages=TALK, source="x/b.dcm")
    only(folder, messages=TALK, source="x/b.dcm", image="a.png")
    only(
        folder, messages=TALK, source="a book", id="x/b.jpg", image_id=3, image_size=[3, 4], caption_image_type="X-ray"
    )


def test_a_refused_key_tells_how_many_records_have_it(folder: Path):
    rows = [{"messages": TALK, "image": "a.png"}] + [{"messages": TALK, "image_path": "a.png"}] * 23
    with pytest.raises(UserError, match=r"row 1: `image_path` .* \(in 23 of 24 records\)"):
        read(folder, rows)


def test_keys_that_are_not_read_are_told_once_with_counts(folder: Path, caplog: pytest.LogCaptureFixture):
    rows = [
        {"messages": TALK, "mood": "good", "id": 1, "note": None},
        {"messages": [TALK[0] | {"name": "Ann"}, ANSWER]},
    ]
    rows += [{"messages": TALK, "mood": "bad", "view": "AP", "fps": 2, "objects": {"bbox": []}}]
    with caplog.at_level(logging.INFO, "qwenvl"):
        notes = read(folder, rows).notes
    expected = {
        "`mood` is not read (2 of 3 records)",
        "`name` of turns is not read (1 of 3 records)",
        "`fps` is not read (1 of 3 records)",
    }
    assert set(notes) == expected | {"`objects` is not read (1 of 3 records)"}
    assert len([line for line in caplog.messages if "is not read" in line]) == 1


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Picture 1: <img>a.png</img>", "contains <img>a.png</img>, which is not read: write <image>"),
        ("<audio>What?", "contains <audio>, but the model takes no audio"),
        ("Find <ref-object>", "no `objects` to fill it in from"),
        ("What is at <bbox>?", "no `objects` to fill it in from"),
    ],
)
def test_placeholders_of_other_tools_are_refused(folder: Path, question: str, expected: str):
    assert expected in refusal(folder, query=question, response="A.")


def test_markup_that_looks_like_a_placeholder_is_text(folder: Path):
    text = "<bbox>1,2</bbox> <audio src='x'> <audio>x</audio> <img src='x'>"
    assert only(folder, query=text, response="A.").turns[0].text == text


def test_sound_is_refused(folder: Path):
    assert "the model takes no audio" in refusal(folder, messages=TALK, audios=["x.wav"])
    assert only(folder, messages=TALK, audios=[]).images == ()


# --- objects -------------------------------------------------------------------------------------------------------


def boxes(folder: Path, answer: str, images: list[str], **objects: Any) -> str:
    """Return the answer of a record with objects; a.png is 200 pixels wide and 100 high."""
    return only(folder, query="Q?", response=answer, images=images, objects=objects).turns[1].text


def test_boxes_and_names_are_filled_in_in_order(folder: Path):
    real = {"ref": ["x", "y"], "bbox": [[20, 10, 100, 50], [0, 0, 200, 100]]}
    assert boxes(folder, "<ref-object><bbox>, <ref-object><bbox>", ["a.png"], **real) == (
        "x[100, 100, 500, 500], y[0, 0, 1000, 1000]"
    )
    assert boxes(folder, "<bbox>", ["a.png"], bbox=[[0.25, 0, 0.5, 1]], bbox_type="norm1") == "[250, 0, 500, 1000]"
    assert boxes(folder, "<bbox>", ["b.png", "a.png"], bbox=[[20, 10]], image_id=[1]) == "[100, 100]"


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ({"bbox": []}, "1 <bbox> in the text but 0 in `objects`"),
        ({"bbox": [[0, 0, 1, 1]], "ref": ["x"]}, "0 <ref-object> in the text but 1"),
        ({"bbox": [[0, 0, 201, 1]]}, "exceeds the"),
        ({"bbox": [[5, 0, 5, 1]]}, "is not a box"),
        ({"bbox": [[201, 0]]}, "the point [201, 0] is outside its image"),
        ({"bbox": [[0, 0, 1]]}, "expected 4 numbers (or 2 for a point)"),
        ({"bbox": [[0, 0, 1, 1]], "image_id": [1]}, "refers to image 1 (from 0), but there are 1"),
        ({"bbox": [[0, 0, 1, 1]], "bbox_type": "norm1000"}, "expected real (pixels) or norm1"),
        ({"bbox": [[0, 0, 1, 1]], "width": [3]}, "expected an object with bbox, bbox_type, image_id, ref"),
    ],
)
def test_objects_that_do_not_fit_are_refused(folder: Path, objects: dict[str, Any], expected: str):
    assert expected in refusal(folder, query="Q?", response="<bbox>", image="a.png", objects=objects)


def test_boxes_in_pixels_need_an_image_that_can_be_read(folder: Path):
    line = refusal(folder, query="Q?", response="<bbox>", image="b.png", objects={"bbox": [[0, 0, 1, 1]]})
    assert f"{folder}/b.png: " in line and "its size is needed for `objects`" in line


def test_the_size_of_an_image_over_the_pixel_limit_is_read_for_its_boxes(folder: Path, monkeypatch):
    monkeypatch.setattr("qwenvl.data.media.images.MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert boxes(folder, "<bbox>", ["a.png"], bbox=[[20, 10, 100, 50]]) == "[100, 100, 500, 500]"


@pytest.mark.parametrize("key", ["rejected_response", "rejected_messages", "kto_tag"])
def test_preferences_of_other_tools_are_refused(folder: Path, key: str):
    assert f"`{key}` is given" in refusal(folder, messages=TALK, **{key: False})


def test_bytes_of_an_image_in_place_of_its_path_are_told_in_a_short_line(folder: Path):
    line = refusal(folder, query="Q?", response="A.", image="/9j/" + "4AAQ" * 2000)
    assert "of 8,004 characters is not a path" in line and "data:image/png;base64" in line and len(line) < 400


def test_functions_and_their_calls_in_the_older_form_of_openai_are_read(folder: Path):
    call = {"role": "assistant", "content": "I look.", "function_call": {"name": "f", "arguments": "{}"}}
    talk = [TALK[0], call, {"role": "function", "name": "f", "content": "7"}, ANSWER]
    record = only(folder, messages=talk, functions=[{"name": "f"}])
    assert json.loads(record.turns[1].tool_calls)[0]["function"]["name"] == "f" and record.turns[1].text == "I look."
    assert json.loads(record.tools)[0]["function"]["name"] == "f"
    assert "both `tools` and `functions`" in refusal(
        folder, messages=TALK, tools=[{"name": "f"}], functions=[{"name": "g"}]
    )

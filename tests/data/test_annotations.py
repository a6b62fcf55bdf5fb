"""Tests of reading annotation files: what is accepted, what is refused and how the refusal reads."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data import annotations
from qwenvl.data.annotations import BadSample, BadSampleTracker, Record, Turn, read_annotations
from qwenvl.errors import UserError

Turns = list[dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the media a.png, b.png and v.mp4; only their presence matters here."""
    for name in ("a.png", "b.png", "v.mp4", "with space.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def talk(question: str = "What is it?", answer: str = "A cat.") -> Turns:
    """Return one question and one answer in the LLaVA style."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def read(folder: Path, content: Any, name: str = "train.json", tracker: BadSampleTracker | None = None):
    """Write `content` (text, or a value that becomes JSON) to a file and read it with media beside it."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_annotations(str(path), str(folder), BadSampleTracker() if tracker is None else tracker)


def only(folder: Path, record: dict[str, Any]) -> Record:
    """Return what one raw record becomes."""
    (result,) = read(folder, [record]).records
    return result


ROWS = [{"conversations": talk("one")}, {"conversations": talk("two")}, {"conversations": talk("three")}]
LINES = "\n".join(json.dumps(row) for row in ROWS) + "\n"


def test_a_record_says_its_row_in_a_list_and_its_line_in_jsonl(tmp_path: Path):
    assert read(tmp_path, ROWS).records[2].full_location == f"{tmp_path / 'train.json'} row 2"
    assert read(tmp_path, LINES, "train.jsonl").records[2].full_location == f"{tmp_path / 'train.jsonl'} line 3"
    assert Record("train.json", 12, ()).full_location == "train.json row 12"


@pytest.mark.parametrize("rows", [[], [[], []]])
def test_a_file_without_records_is_refused(tmp_path: Path, rows: list):
    with pytest.raises(UserError, match=f"train.json: no usable record among {len(rows)} rows"):
        read(tmp_path, rows)


def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path):
    with pytest.raises(UserError, match="train.jsonl line 4: malformed JSON at column 20"):
        read(tmp_path, LINES + '{"conversations": [', "train.jsonl")


def test_a_nested_list_becomes_packs_of_indices(folder: Path):
    rows = [[{"conversations": talk("one")}, {"conversations": talk("two")}], {"conversations": talk("three")}]
    annotations = read(folder, rows)
    assert annotations.packs == [[0, 1], [2]]
    assert annotations.records[1].full_location.endswith("train.json row 0 item 1")
    assert read(folder, ROWS).packs is None


def test_a_bad_record_leaves_its_pack_and_an_empty_pack_goes(folder: Path):
    bad = {"conversations": talk(answer="")}
    good = {"conversations": talk()}
    tracker = BadSampleTracker("skip", 10)
    annotations = read(folder, [[good, bad, good], [bad], [good]], tracker=tracker)
    assert annotations.packs == [[0, 1], [2]]
    assert [bad.full_location.split("train.json ")[1] for bad in tracker.samples] == ["row 0 item 1", "row 1 item 0"]


# --- turns ---------------------------------------------------------------------------------------------------------


def test_conversations_and_messages_give_the_same_turns(folder: Path):
    system = [{"from": "system", "value": "Be brief."}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
    ]
    expected = (Turn("system", "Be brief."), Turn("user", "What is it?"), Turn("assistant", "A cat."))
    assert only(folder, {"conversations": system + talk()}).turns == expected
    assert only(folder, {"messages": messages}).turns == expected


def test_many_turns_keep_their_order_and_answers_lose_outer_white_space(folder: Path):
    turns = only(folder, {"conversations": talk("one", " 1\n") + talk("two", "\t2 2 ")}).turns
    assert [turn.text for turn in turns] == ["one", "1", "two", "2 2"]
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("text", "got a str, expected an object"),
        (None, "got a NoneType, expected an object"),
        ({"id": 3, "image": "a.png"}, "`prompt` + `completion`, got only ['id', 'image']"),
        ({"conversations": talk(), "messages": []}, "got conversations and messages: keep one of them"),
        ({"conversations": []}, "`conversations` is [], expected a list of turns"),
        ({"messages": None}, "expected one of `conversations`, `messages`, `conversation`, `query` + `response`"),
        ({"conversations": ["hello"]}, "turn 0 is 'hello', expected an object"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "role 'bot', expected one of human, user, gpt"),
        ({"conversations": [{"value": "x"}]}, "role None"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "role ['human']"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0 has the content 3, expected a text"),
        ({"conversations": [{"from": "human"}]}, "turn 0 has the content None, expected a text"),
        ({"conversations": talk()[:1]}, "no assistant turn"),
        ({"conversations": talk()[1:]}, "no user turn"),
        ({"conversations": [*talk(), {"from": "system", "value": "x"}]}, "turn 2 is a system turn"),
        ({"conversations": talk(answer="  \n")}, "turn 1 is an empty answer"),
        (
            {"conversations": talk(answer="see <image>"), "image": "a.png"},
            "turn 1, an answer, contains the placeholder",
        ),
        ({"conversations": talk(answer="<video>")}, "contains the placeholder <video>"),
        ({"conversations": [{"from": "system", "value": "<image>"}, *talk()]}, "the system prompt, contains"),
        ({"conversations": talk("a <|image_pad|>")}, "turn 0 contains <|image_pad|>"),
        ({"conversations": talk(answer="a<|im_end|>")}, "turn 1 contains <|im_end|>"),
        ({"conversations": talk("half \ud83d")}, "turn 0 contains half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "turn 0 has the part {'type': 'audio'}"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "turn 0 has the part 'hi'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "turn 0 has the part {'type': 'text'}"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}, "has the image 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", "max_pixels": 9}]}]},
            "turn 0 sets max_pixels on one part",
        ),
    ],
)
def test_a_wrong_record_is_refused_with_its_row_and_the_reason(folder: Path, record: Any, expected: str):
    with pytest.raises(UserError) as error:
        read(folder, [ROWS[0], record])
    assert f"{folder / 'train.json'} row 1: " in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pad_token_of_another_kind_is_just_text(folder: Path):
    assert only(folder, {"conversations": talk("<|box_start|>(1,2)<|box_end|>")}).turns[0].text.startswith("<|box_")


# --- media ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "images", "videos"),
    [
        ({"image": "a.png"}, ["a.png"], []),
        ({"image": ["a.png", "b.png"]}, ["a.png", "b.png"], []),
        ({"images": ["b.png", "a.png"]}, ["b.png", "a.png"], []),
        ({"image": ["a.png", "a.png"]}, ["a.png", "a.png"], []),
        ({"video": "v.mp4"}, [], ["v.mp4"]),
        ({"videos": ["v.mp4"], "image": "sub/../a.png"}, ["a.png"], ["v.mp4"]),
        ({"image": "", "video": None, "images": []}, [], []),
    ],
)
def test_media_are_a_path_or_a_list_and_become_absolute(folder: Path, given: dict, images: list, videos: list):
    record = only(folder, {"conversations": talk(), **given})
    assert record.images == tuple(str(folder / name) for name in images)
    assert record.videos == tuple(str(folder / name) for name in videos)


def test_absolute_paths_and_file_urls_do_not_depend_on_the_media_root(folder: Path):
    path = str(folder / "with space.png")
    content = [{"conversations": talk(), "image": [path, f"file://{path.replace(' ', '%20')}"]}]
    (folder / "t.json").write_text(json.dumps(content))
    (record,) = read_annotations(str(folder / "t.json"), "/nowhere", BadSampleTracker()).records
    assert record.images == (path, path)


def test_relative_paths_start_from_the_media_root_or_else_from_the_current_folder(folder: Path, monkeypatch):
    (folder / "t.json").write_text(json.dumps([{"conversations": talk(), "image": "a.png"}]))
    monkeypatch.chdir(folder)
    for root in ("", ".", str(folder)):
        (record,) = read_annotations("t.json", root, BadSampleTracker()).records
        assert record.images == (str(folder / "a.png"),)


def test_missing_placeholders_go_in_front_of_the_first_user_turn(folder: Path):
    talks = [{"from": "system", "value": "Be brief."}, *talk("one"), *talk("two")]
    turns = only(folder, {"conversations": talks, "image": ["a.png", "b.png"], "video": "v.mp4"}).turns
    assert [turn.text for turn in turns[:4]] == ["Be brief.", "<image><image><video>one", "A cat.", "two"]


def test_a_kind_without_placeholders_is_filled_in_beside_one_that_has_them(folder: Path):
    record = {"conversations": talk("see <video> now"), "image": "a.png", "video": "v.mp4"}
    assert only(folder, record).turns[0].text == "<image>see <video> now"


def test_placeholders_that_are_there_stay_where_they_are(folder: Path):
    record = {"conversations": talk("first <image>") + talk("and <image>?"), "image": ["a.png", "b.png"]}
    assert [turn.text for turn in only(folder, record).turns[::2]] == ["first <image>", "and <image>?"]


@pytest.mark.parametrize(
    ("question", "given", "expected"),
    [
        ("<image> and <image>", {"image": "a.png"}, "2 <image> in the text but 1 image file(s)"),
        ("<image>", {"image": ["a.png", "b.png"]}, "1 <image> in the text but 2 image file(s)"),
        ("<image>", {}, "1 <image> in the text but 0 image file(s)"),
        ("<video>", {"image": "a.png"}, "1 <video> in the text but 0 video file(s)"),
        ("", {"image": "a.png", "images": ["b.png"]}, "both `image` and `images` are given"),
        ("", {"image": {"file": "a.png"}}, "`image` is {'file': 'a.png'}, expected a path or a list of paths"),
        ("", {"image": [["a.png"]]}, "`image` is ['a.png'], expected a path or a list of paths"),
        ("", {"image": ["a.png", ""]}, "expected a path or a list of paths"),
        ("", {"video": 7}, "`video` is 7"),
        ("", {"image": "https://host/a.png"}, "https://host/a.png: media are read from files only"),
        ("", {"image": "data:image/png;base64,AAA"}, "is not base64"),
        ("", {"image": "data:image/png,AAAA"}, "not a URL of the form data:image/png;base64"),
        ("", {"image": "file://["}, "'file://[' is not a file URL (Invalid IPv6 URL)"),
        ("", {"image": "a\x00.png"}, "holds a control character"),
        ("", {"image": "a\n.png"}, "holds a control character"),
        ("", {"image": "\ud83d.png"}, "half of a surrogate pair"),
        ("", {"image": "c.png"}, "c.png: no such file"),
        ("", {"image": ["a.png", "."]}, ": not a file, but a folder"),
    ],
)
def test_media_that_do_not_fit_are_refused(folder: Path, question: str, given: dict[str, Any], expected: str):
    with pytest.raises(UserError) as error:
        read(folder, [ROWS[0], {"conversations": talk(question), **given}])
    assert f"{folder / 'train.json'} row 1: " in str(error.value)
    assert expected in str(error.value)


def test_message_parts_bring_text_and_media_in_their_order(folder: Path):
    parts = [
        {"type": "text", "text": "Left "},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": " right "},
        {"type": "image_url", "image_url": {"url": f"file://{folder}/a.png", "detail": "high"}},
        {"type": "video", "video": "v.mp4", "image": None},
        {"type": "image", "path": "a.png"},
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes. "}]}
    record = only(folder, {"messages": [{"role": "user", "content": parts}, answer]})
    assert record.turns == (Turn("user", "Left <image> right <image><video><image>"), Turn("assistant", "Yes."))
    assert record.images == tuple(str(folder / name) for name in ("b.png", "a.png", "a.png"))
    assert record.videos == (str(folder / "v.mp4"),)


def test_message_parts_without_paths_stand_for_the_record_s_media(folder: Path):
    content = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    record = only(folder, {"messages": messages, "images": ["a.png", "b.png"]})
    assert record.turns[0].text == "<image>and<image>"
    assert record.images == (str(folder / "a.png"), str(folder / "b.png"))


def test_media_given_twice_over_are_refused(folder: Path):
    content = [{"type": "image", "image": "a.png"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(UserError, match="images given both in the record and in the parts"):
        only(folder, {"messages": messages, "image": "a.png"})


# --- tracker --------------------------------------------------------------------------------------------------------

BAD_AND_GOOD = [{"conversations": talk(), "image": "no.png"}, ROWS[0], {"conversations": []}, ROWS[1]]


def test_skip_leaves_bad_samples_out_counts_and_logs_them(folder: Path, caplog: pytest.LogCaptureFixture):
    tracker = BadSampleTracker("skip", max_bad_samples=2)
    with caplog.at_level(logging.WARNING):
        records = read(folder, BAD_AND_GOOD, tracker=tracker).records
    assert [record.row for record in records] == [1, 3]
    assert tracker.count == 2
    assert any("row 0" in line and "no.png" in line and "no such file" in line for line in caplog.messages)
    assert any("row 2" in line and "expected a list of turns" in line for line in caplog.messages)


def test_skip_stops_once_there_are_more_bad_samples_than_allowed(folder: Path):
    with pytest.raises(UserError, match="2 bad samples, more than --max_bad_samples 1"):
        read(folder, BAD_AND_GOOD, tracker=BadSampleTracker("skip", max_bad_samples=1))


def test_skip_also_covers_malformed_lines_of_jsonl(folder: Path):
    tracker = BadSampleTracker("skip", max_bad_samples=5)
    assert len(read(folder, LINES + '{"conversations": [', "t.jsonl", tracker).records) == 3
    assert tracker.samples[0].full_location.endswith("t.jsonl line 4")


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_bad_samples_come_in_one_order_however_many_records_are_held_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, name: str
):
    monkeypatch.setattr(annotations, "_DRAFTS_PER_BATCH", at_once)
    rows = [*BAD_AND_GOOD, {"image_path": "a.png", "conversations": talk()}, ROWS[0]]
    texts = [*map(json.dumps, rows), '{"a": 1, "a": 2}', json.dumps(BAD_AND_GOOD[0])]
    text = "\n".join(texts) if name.endswith("l") else f"[{','.join(texts)}]"
    tracker = BadSampleTracker("skip", 9)
    result = read(folder, text, name, tracker)
    assert [record.row for record in result.records] == [1, 3, 5]
    first = int(name.endswith("l"))
    assert [int(bad.full_location.split()[-1]) - first for bad in tracker.samples] == [6, 2, 4, 0, 7]
    assert "in 1 of 7 records" in tracker.samples[2].reason


def test_packs_that_lie_across_what_is_held_at_once_stay_together(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(annotations, "_DRAFTS_PER_BATCH", 1)
    packs = [ROWS[:2], ROWS[2], [BAD_AND_GOOD[0], ROWS[0]]]
    assert read(folder, packs, tracker=BadSampleTracker("skip", 1)).packs == [[0, 1], [2], [3]]


def test_nothing_but_bad_samples_is_an_error_under_skip_too(folder: Path):
    with pytest.raises(UserError, match="no usable record among 1 rows"):
        read(folder, [{"conversations": []}], tracker=BadSampleTracker("skip", 5))


def test_the_error_policy_raises_at_the_first_bad_sample():
    tracker = BadSampleTracker("error", max_bad_samples=5)
    with pytest.raises(UserError, match="train.json row 3: a.png: broken .*--bad_sample_policy skip"):
        tracker.report(BadSample("train.json", "row 3", "a.png", "broken"))


def test_a_hundred_thousand_records_are_read_in_a_few_seconds(folder: Path):
    rows = [{"id": str(i), "image": "a.png", "conversations": talk(f"<image>\nnumber {i}")} for i in range(100_000)]
    (folder / "large.json").write_text(json.dumps(rows))
    start = time.perf_counter()
    records = read_annotations(str(folder / "large.json"), str(folder), BadSampleTracker()).records
    assert len(records) == 100_000
    assert time.perf_counter() - start < 20  # about 2 s on an idle core; room for a busy machine


def test_rows_that_cannot_be_read_count_among_those_of_a_file_without_a_usable_record(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1,}\n{"messages": []}\n')
    with pytest.raises(UserError, match="no usable record among 2 rows"):
        read_annotations(str(path), str(tmp_path), BadSampleTracker("skip"))

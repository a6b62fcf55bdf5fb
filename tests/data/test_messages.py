"""Tests of turning records into chat messages."""

from typing import Any

import pytest

from qwenvl.data.annotations import Record, Turn
from qwenvl.data.messages import to_messages

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict[str, str]:
    """Return a text part."""
    return {"type": "text", "text": words}


def parts(question: str) -> list[dict[str, Any]]:
    """Return the parts that one user turn becomes."""
    record = Record("t.json", 0, (Turn("user", question), Turn("assistant", "Yes.")))
    return to_messages(record)[0]["content"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is it?", [text("What is it?")]),
        ("<image>\nWhat is it?", [IMAGE, text("What is it?")]),
        ("What is it?\n<image>", [text("What is it?"), IMAGE]),
        ("<image><image>", [IMAGE, IMAGE]),
        ("A: <image> B: <video>\n", [text("A:"), IMAGE, text("B:"), VIDEO]),
        ("  two\n\nlines  ", [text("two\n\nlines")]),
        (" ", []),
        ("<image_2> and <Image>", [text("<image_2> and <Image>")]),
    ],
)
def test_placeholders_become_parts_and_white_space_beside_them_goes(question: str, expected: list):
    assert parts(question) == expected


def test_every_turn_becomes_a_message_with_its_text_untouched():
    turns = (Turn("system", " Be brief. "), Turn("user", "one"), Turn("assistant", "1"), Turn("user", "two"))
    assert to_messages(Record("t.json", 0, turns)) == [
        {"role": "system", "content": [text(" Be brief. ")]},
        {"role": "user", "content": [text("one")]},
        {"role": "assistant", "content": [text("1")]},
        {"role": "user", "content": [text("two")]},
    ]


def test_the_chat_template_renders_a_written_sample_like_a_chat_with_an_image(processor):
    record = Record("t.json", 0, (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat.")), ("a.png",))
    chat = [{"role": "user", "content": [IMAGE, text("What is it?")]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert processor.apply_chat_template(to_messages(record)).startswith(f"{prompt}A cat.")


def test_a_thought_and_calls_are_named_as_chat_templates_name_them():
    calls = (
        '[{"id": "1", "function": {"name": "zoom", "arguments": "{\\"x\\": 1}"}}, {"name": "say", "arguments": "no"}]'
    )
    turns = (Turn("user", "Q"), Turn("assistant", "", thought="R", tool_calls=calls), Turn("tool", " <image> there"))
    assert to_messages(Record("t.json", 0, turns))[1:] == [
        {
            "role": "assistant",
            "content": [],
            "reasoning_content": "R",
            "tool_calls": [
                {"id": "1", "function": {"name": "zoom", "arguments": {"x": 1}}},
                {"name": "say", "arguments": "no"},
            ],
        },
        {"role": "tool", "content": [IMAGE, text("there")]},
    ]

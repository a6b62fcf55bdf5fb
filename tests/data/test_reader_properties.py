"""Properties of the reader of annotation files: whatever it is given, it gives records or one line, and soon."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl.data.annotations import Annotations, BadSampleTracker, read_annotations
from qwenvl.errors import UserError

PROPERTY = settings(
    max_examples=150,
    # Of each example, for bounded time.
    deadline=5000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
RECORD_KEYS = (
    ["conversations", "messages", "conversation", "query", "response", "history", "prompt", "completion"]
    + ["instruction", "input", "output", "system", "tools", "objects", "fps", "image", "images", "video", "videos"]
    + ["audio", "audios", "chosen", "image_path", "Image", "id", "view", "file_name"]
)
INNER_KEYS = (
    ["from", "value", "role", "content", "loss", "weight", "tool_calls", "reasoning_content", "type", "text", "image"]
    + ["index", "image_url", "url", "path", "bytes", "frames", "fps", "sample_fps", "video", "function", "name"]
    + ["arguments", "ref", "bbox", "bbox_type", "image_id", "human", "assistant", "base64"]
)
WORDS = (
    ["human", "gpt", "user", "assistant", "system", "tool", "function_call", "text", "image", "image_url", "video"]
    + [
        "a.png",
        "sub\\a.png",
        ".",
        "..",
        "v.mp4",
        "frames",
        "https://host/a.png",
        "file://[",
        "data:image/png;base64,AA==",
    ]
    + ["data:,", "<image>", "<video>", "<bbox>", "<ref-object>", "<img>a.png</img>", "<audio>", "<|im_end|>", "norm1"]
    + ["[]", "{}", '[{"name": "f", "arguments": {}}]', "[" * 2000, "\x00", "\ud83d", "a\nb", "", "9" * 5000]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**70, 10**400, 10**4000])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(INNER_KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "tool_call"]), "content": VALUES},
        optional=dict.fromkeys(("loss", "weight", "tool_calls", "reasoning_content", "image"), VALUES),
    ),
    min_size=2,
    max_size=4,
)
TALK = [{"role": "user", "content": "<image>Q <ref-object>"}, {"role": "assistant", "content": "A <bbox>"}]
ROWS = (
    VALUES
    | st.dictionaries(st.sampled_from(RECORD_KEYS), VALUES, max_size=6)
    | st.fixed_dictionaries({"messages": TURNS}, optional=dict.fromkeys(("image", "video", "tools", "fps"), VALUES))
    | st.fixed_dictionaries(
        {"messages": st.just(TALK)},
        optional=dict.fromkeys([key for key in RECORD_KEYS if key != "messages"], VALUES)
        | {"image": st.sampled_from(["a.png", ["a.png"] * 2])},
    )
    | st.fixed_dictionaries(
        {
            "messages": st.just(TALK),
            "image": st.just("a.png"),
            "objects": st.fixed_dictionaries(
                {"ref": VALUES, "bbox": st.lists(st.lists(SCALARS, max_size=4), max_size=1)},
                optional={"image_id": VALUES, "bbox_type": VALUES},
            ),
        }
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with an image, and a folder of frames."""
    (tmp_path / "frames").mkdir()
    for name in ("a.png", "frames/0.png", "frames/1.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, name: str, policy: str) -> Annotations | None:
    """Return what is in a file, or None where it is refused in one line; any other error fails."""
    try:
        tracker = BadSampleTracker(policy, 1000)
        return read_annotations(str(folder / name), str(folder), tracker, str(folder / "cache"))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
        return None


@PROPERTY
@given(row=ROWS)
@example(row={"query": "Q", "response": "A", "image": "file://["})
@example(row={"query": 10**4000, "response": "A", "fps": 10**4000})
@example(row={"query": "Q", "response": "<bbox>", "image": "a.png", "objects": {"bbox": [[0, 0, 10**4000, 1]]}})
def test_any_value_as_a_row_gives_a_record_or_one_line(folder: Path, row: Any):
    for value, name in ((row, "t.jsonl"), ([row, row], "t.json")):
        (folder / name).write_text(json.dumps(value))
        for policy in ("error", "skip"):
            annotations = read(folder, name, policy)
            for record in annotations.records if annotations else ():
                assert sum(turn.text.count("<image>") for turn in record.turns) == len(record.images)
                assert sum(turn.text.count("<video>") for turn in record.turns) == len(record.videos)
                assert any(turn.role == "assistant" and turn.supervised for turn in record.turns)
                for text in (record.tools, *(turn.tool_calls for turn in record.turns)):
                    assert text is None or isinstance(json.loads(text), list)


GOOD = json.dumps([{"query": "Q", "response": "A"}] * 2).encode()
MARKS = [
    b'[{"',
    b'{"query": "Q", "response": "A"}',
    b"\n",
    b",]",
    b"NaN",
    b"-Infinity",
    b'"\\ud83d"',
    b"\xff\xfe",
    b"\x00",
]
FILES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(MARKS) | st.binary(max_size=4), max_size=12).map(b"".join),
    st.integers(0, len(GOOD)).map(lambda end: GOOD[:end]),
    st.sampled_from(
        [gzip.compress(GOOD, mtime=0)[:40], GOOD.decode().encode("utf-16"), b"\xef\xbb\xbf" + GOOD, b"PAR1" * 9]
    ),
    st.sampled_from(
        [b"[" * 5000, b'{"a":' * 5000, b"[" * 900 + b"]" * 900, b"9" * 5000, b'[{"a": ' + b"9" * 5000 + b"}]"]
    ),
)


@PROPERTY
@given(data=FILES, name=st.sampled_from(["t.json", "t.jsonl", "t.json.gz", "t.jsonl.gz", "t.parquet"]))
def test_any_bytes_as_a_file_give_records_or_one_line(folder: Path, data: bytes, name: str):
    (folder / name).write_bytes(data)
    for policy in ("error", "skip"):
        read(folder, name, policy)


@pytest.mark.parametrize(
    "row",
    [
        '{"query": "Q", "response": "A", "tools": [{"name": "f", "parameters": {"a": DEEP}}]}',
        '{"query": "Q", "response": DEEP, "image": DEEP, "id": DEEP}',
        '{"messages": [{"role": "user", "content": DEEP, "value": DEEP}]}',
        '{"messages": [{"role": "user", "content": "Q"}, {"role": "tool_call", "content": {"name": DEEP}}]}',
    ],
)
def test_a_row_nested_as_deeply_as_json_is_read_is_one_line_too(folder: Path, row: str):
    # Somewhere here is what `json` still reads, and what comes after it does not.
    for depth in range(700, 1000):
        (folder / "t.jsonl").write_text(row.replace("DEEP", "[" * depth + "]" * depth))
        read(folder, "t.jsonl", "error")

"""The pre-flight check: it finds what is wrong, where, keeps what is right, and foretells what training will do."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from qwenvl.bench.standin import build_standin
from qwenvl.check.arguments import parse_check_arguments
from qwenvl.check.data import DataCheck, main
from qwenvl.check.duplicates import picture_ids
from qwenvl.check.raw_rows import iter_rows
from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.data.data_processor import make_supervised_data_module
from qwenvl.data.rows import read_rows
from qwenvl.errors import UserError
from qwenvl.medical.mimic import prepare
from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic
from qwenvl.model.build import load_processor
from qwenvl.train.argument import DataArguments, TrainingArguments
from qwenvl.train.memory import Sharding
from qwenvl.train.train_qwen import train

REPOSITORY = Path(__file__).resolve().parents[2]


class Outcome(NamedTuple):
    """What one check returned, wrote and printed."""

    code: int
    problems: list[dict[str, Any]]
    out: Path
    text: str

    def clean(self, name: str = "clean.json") -> Any:
        """Return the rows of a clean file, after a look that their media are found, with the names of these alone."""
        text = (self.out / name).read_text(encoding="utf-8")
        return json.loads(text, object_hook=self._with_names)

    def _with_names(self, value: dict[str, Any]) -> dict[str, Any]:
        for kind in ("image", "video"):
            paths = value.get(kind, [])
            for path in [paths] if isinstance(paths, str) else paths:
                assert (self.out / path).is_file()
            if paths:
                names = [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]
                value[kind] = names[0] if isinstance(paths, str) else names
        return value

    def told(self, name: str) -> str:
        """Return the value that a table gives under this name."""
        found = re.search(rf"^ *{re.escape(name)}  +(.*)$", self.text, re.MULTILINE)
        assert found, f"no row {name!r} in:\n{self.text}"
        return found[1].strip()


def row(image: str | list[str] | None, answer: str, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    """Return a record about pictures; `more` are keys that training does not read."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return more | ({} if image is None else {"image": image}) | {"conversations": turns}


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Return a folder of eight different pictures, film0.png to film7.png, 96 wide and 64 high."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(8):
        Image.new("L", (96, 64), number * 20).save(folder / f"film{number}.png")
    return folder


@pytest.fixture
def check(standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Return a function that checks an annotation file with these flags."""

    def run(dataset: Path | str, *flags: object, out: str = "out") -> Outcome:
        required = ["--model_name_or_path", standin, "--dataset_use", dataset, "--out", tmp_path / out]
        required += ["--model_max_length", 512, "--media_cache_dir", tmp_path, "--workers", 1]
        code = main([str(word) for word in (*required, *flags)])
        lines = (tmp_path / out / "problems.jsonl").read_text(encoding="utf-8").splitlines()
        return Outcome(code, [json.loads(line) for line in lines], tmp_path / out, capsys.readouterr().out)

    return run


def sound_rows(count: int = 8) -> list[dict[str, Any]]:
    return [row(f"film{number}.png", f"It is film {number}.", id=number) for number in range(count)]


def test_a_clean_set_is_copied_as_it_is_and_gives_0(check, films: Path):
    dataset = write(
        films / "train.json", [*sound_rows(), row(None, "Yes – so.", "Is it?", note={"score": [1.5, None]})]
    )
    before = dataset.read_bytes()
    outcome = check(dataset)
    assert (outcome.code, outcome.problems) == (0, [])
    assert outcome.clean() == json.loads(before)
    assert dataset.read_bytes() == before
    clean = read_annotations(str(outcome.out / "clean.json"), str(outcome.out), BadSampleTracker())
    assert [Path(path) for record in clean.records for path in record.images] == sorted(films.glob("film?.png"))
    assert Image.open(outcome.out / "token_lengths.png").size[0] > 300
    assert sorted(path.name for path in outcome.out.iterdir()) == ["clean.json", "problems.jsonl", "token_lengths.png"]


BAD_ROWS = {
    "no answer": ({"image": "film0.png", "conversations": []}, "record", "at least one answer"),
    "no object": ("film", "record", "got a str"),
    "empty answer": (row("film0.png", "  "), "record", "empty answer"),
    "too many placeholders": (row("film0.png", "Two.", "<image><image>?"), "record", "2 <image> in the text but 1"),
    "reserved token": (row("film0.png", "It is<|im_end|>"), "record", "chat template writes itself"),
    "special token": (row("film0.png", "It <|box_start|>is", "q"), "text", "turn 1 holds <|box_start|>"),
    "missing file": (row("film9.png", "None."), "file", "no such file"),
    "empty file": (row("empty.png", "None."), "file", "0 bytes"),
    "no picture": (row("text.png", "None."), "file", "not an image"),
    "box outside": (row("film1.png", '[{"bbox_2d": [1, 2, 3, 1001], "label": "x"}]'), "box", "leaves the picture"),
    "no box": (row("film1.png", '[{"bbox_2d": [5, 2, 3, 9], "label": "x"}]'), "box", "is no box"),
    "half a box": (row("film1.png", 'See {"bbox_2d": [5, 2, 3]}.'), "box", "no list of 4 numbers"),
    "too long": (row("film1.png", "word " * 600), "length", "more than --model_max_length 512"),
    "duplicate": (row("film7.png", "It is film 7."), "duplicate", "the same media and the same answer as .* row 7"),
    "climbing path": (row("../stranger.png", "Out."), "outside", "through `..`"),
    "link": (row("link.png", "Out."), "outside", "a link leads out"),
}


def test_every_kind_of_bad_row_is_found_named_and_left_out(check, films: Path):
    (films / "empty.png").touch()
    (films / "text.png").write_text("no picture")
    Image.new("L", (70, 70), 9).save(films.parent / "stranger.png")
    (films / "link.png").symlink_to(films.parent / "stranger.png")
    dataset = write(films / "train.json", [*sound_rows(), *(bad for bad, _, _ in BAD_ROWS.values())])
    outcome = check(dataset)
    assert outcome.code == 1
    assert outcome.clean() == sound_rows()
    assert {problem["file"] for problem in outcome.problems} == {str(dataset)}
    assert [problem["row"] for problem in outcome.problems] == [f"row {8 + number}" for number in range(len(BAD_ROWS))]
    for problem, (name, (_, kind, reason)) in zip(outcome.problems, BAD_ROWS.items(), strict=True):
        assert problem["check"] == kind and re.search(reason, problem["reason"]), f"{name}: {problem}"
    assert outcome.told("problems") == str(len(BAD_ROWS))
    paths = {problem["row"]: problem["path"] for problem in outcome.problems}
    assert paths["row 14"] == str(films / "film9.png") and paths["row 8"] is None


def test_a_truncated_picture_is_found_by_full_decoding_alone(check, films: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(films / "whole.jpg")
    (films / "half.jpg").write_bytes((films / "whole.jpg").read_bytes()[:2000])
    dataset = write(films / "train.json", [row("whole.jpg", "A."), row("half.jpg", "B.")])
    assert check(dataset).code == 0
    outcome = check(dataset, "--decode", "full", "--workers", "2", out="full")
    assert [(problem["row"], problem["check"]) for problem in outcome.problems] == [("row 1", "file")]
    assert "truncated" in outcome.problems[0]["reason"]


def test_a_video_is_decoded_too(check, media: Path, tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes((media / "clip.mp4").read_bytes()[:900])
    (tmp_path / "clip.mp4").write_bytes((media / "clip.mp4").read_bytes())
    rows = [row(None, f"See {name}.", video=name) for name in ("clip.mp4", "broken.mp4")]
    outcome = check(write(tmp_path / "train.json", rows), "--decode", "full")
    assert [(problem["row"], problem["check"]) for problem in outcome.problems] == [("row 1", "file")]
    assert outcome.clean() == rows[:1]


@pytest.mark.parametrize(
    ("flags", "repeated"),
    [
        ([], ["row 1", "row 2", "row 3", "row 5"]),
        (["--same_picture", "path"], ["row 2", "row 3", "row 5"]),
        (["--duplicates", "record"], ["row 1", "row 2", "row 5"]),
        (["--duplicates", "none"], []),
    ],
)
def test_a_duplicate_is_what_the_flags_call_one(check, films: Path, flags: list[str], repeated: list[str]):
    (films / "copy.png").write_bytes((films / "film1.png").read_bytes())
    rows = [
        row("film1.png", "No."),
        row("copy.png", "No."),
        row("film1.png", "No."),
        row("film1.png", "No.", "Is there fluid?"),
        row(None, "No.", "Is it text?"),
        row(None, "No.", "Is it text?"),
        row(None, "No.", "Is it a picture?"),
        row("film2.png", "No."),
        row("film1.png", "Yes."),
    ]
    assert [each["row"] for each in check(write(films / "train.json", rows), *flags).problems] == repeated


def test_a_picture_in_training_and_evaluation_is_told_of_the_training_record(check, films: Path):
    (films / "copy.png").write_bytes((films / "film3.png").read_bytes())
    train_file = write(films / "train.json", sound_rows(5))
    eval_file = write(films / "valid.json", [row("copy.png", "Other words."), row("film7.png", "Seven.")])
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [(each["file"], each["row"], each["check"]) for each in outcome.problems] == [
        (str(train_file), "row 3", "leak")
    ]
    reason = outcome.problems[0]["reason"]
    assert (
        reason.startswith(f"a file of the same content, {films / 'copy.png'}, is in") and f"{eval_file} row 0" in reason
    )
    assert [each["id"] for each in outcome.clean()] == [0, 1, 2, 4]
    assert outcome.clean("eval_clean.json") == json.loads(eval_file.read_text())
    assert check(train_file, "--eval_dataset_use", eval_file, "--same_picture", "path", out="path").code == 0


def test_one_file_under_two_names_in_training_and_evaluation_is_called_that(check, films: Path):
    os.link(films / "film3.png", films / "link.png")
    train_file = write(films / "train.json", sound_rows(5))
    outcome = check(train_file, "--eval_dataset_use", write(films / "valid.json", [row("link.png", "Words.")]))
    assert [each["reason"].partition(" in the")[0] for each in outcome.problems] == ["the same file is"]


@pytest.mark.parametrize(("key", "given", "held_out"), [("subject_id", 7, "7"), ("patient_id", "p7", "p7")])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_subject_in_training_and_evaluation_is_a_leak(check, films: Path, key, given, held_out, suffix: str):
    rows = [row(f"film{n}.png", f"It is {n}.", id=n, **{key: given if n in (1, 3) else n + 100}) for n in range(5)]
    train_file = films / f"train.{suffix}"
    train_file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    eval_file = write(films / "valid.json", [row("film7.png", "Seven.", **{key: held_out}), row("film6.png", "Six.")])
    outcome = check(train_file, "--eval_dataset_use", eval_file)
    assert [each["check"] for each in outcome.problems] == ["leak", "leak"]
    expected = f"{key} {given} is in the evaluation data too ({eval_file} row 0): keep a subject in one"
    assert {each["reason"] for each in outcome.problems} == {expected}
    assert [each["id"] for each in outcome.clean()] == [0, 2, 4]


def test_a_record_whose_questions_and_answers_are_swapped_is_told(check, films: Path):
    swapped = row("film1.png", "What is it?")
    swapped["conversations"] = [{"from": "gpt", "value": "A chest."}, {"from": "human", "value": "<image>What is it?"}]
    outcome = check(write(films / "train.json", [row("film0.png", "It is 0."), swapped]))
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 1", "turns")]
    assert "roles of its turns swapped" in outcome.problems[0]["reason"]


@pytest.mark.parametrize("decode", ["header", "full"])
def test_a_file_used_as_an_image_and_as_a_video_is_judged_in_each_use(check, media: Path, tmp_path: Path, decode: str):
    clip, red = str(media / "clip.mp4"), str(media / "red.png")
    rows = [row(clip, "A clip."), row(red, "Red."), row(None, "A clip.", video=clip), row(None, "Red.", video=red)]
    outcome = check(write(tmp_path / "uses.json", rows), "--decode", decode)
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "file"), ("row 3", "file")]
    assert len(outcome.clean()) == 2


def test_files_are_equal_by_their_bytes_even_where_size_and_ends_are(tmp_path: Path):
    middle = {"a": b"x", "b": b"y", "c": b"x"}
    for name, byte in middle.items():
        (tmp_path / name).write_bytes(b"0" * 10_000 + byte + b"0" * 10_000)
    os.link(tmp_path / "b", tmp_path / "d")
    (tmp_path / "e").write_bytes(b"0")
    ids = picture_ids([str(tmp_path / name) for name in "abcdef"])
    same = {left + right for left in "abcdef" for right in "abcdef" if left < right}
    same = {pair for pair in same if ids[str(tmp_path / pair[0])] == ids[str(tmp_path / pair[1])]}
    assert same == {"ac", "bd"}


def test_paths_that_leave_the_folder_are_refused_unless_named_outright_or_allowed(check, films: Path, tmp_path: Path):
    Image.new("L", (50, 60), 3).save(tmp_path / "stranger one.png")
    linked = tmp_path / "linked"
    linked.symlink_to(films)
    (films / "inner.png").symlink_to(films / "film5.png")
    (films / "away").symlink_to(tmp_path)
    rows = [
        row("../stranger one.png", "0"),
        row(str(tmp_path / "stranger one.png"), "1"),
        row((tmp_path / "stranger one.png").as_uri(), "2"),
        row("sub/../film1.png", "3"),
        row("inner.png", "4"),
        row("away/stranger one.png", "5"),
        row("film2.png", "see ../stranger one.png"),
    ]
    write(films / "train.json", rows)
    # The folder itself may be reached through a link.
    outcome = check(linked / "train.json")
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "outside"), ("row 5", "outside")]
    assert check(linked / "train.json", "--allow_outside", out="allowed").code == 0


@pytest.mark.parametrize(
    ("space", "answer", "sound"),
    [
        ("relative", '{"bbox_2d": [0, 0, 1000, 1000]}', True),
        ("relative", 'Here: ```json\n[{"bbox_2d": [10, 10, 20, 20], "label": "a"}]\n```', True),
        ("relative", 'First {"bbox_2d": [1, 1, 2, 2]} and {"bbox_2d": [1, 1, 2, 1002]}', False),
        ("absolute", '[{"bbox_2d": [0, 0, 96, 64]}]', True),
        ("absolute", '[{"bbox_2d": [0, 0, 64, 96]}]', False),
        ("none", '[{"bbox_2d": [0, 0, -5, 9000]}]', True),
    ],
)
def test_boxes_are_measured_in_the_space_that_is_named(check, films: Path, space: str, answer: str, sound: bool):
    outcome = check(write(films / "train.json", [row("film0.png", answer)]), "--box_space", space)
    assert outcome.code == (0 if sound else 1)
    assert [each["check"] for each in outcome.problems] == ([] if sound else ["box"])


def test_jsonl_keeps_its_line_numbers_and_malformed_lines_are_told(check, films: Path):
    lines = films / "train.jsonl"
    lines.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(sound_rows()[0]).encode() + b"\n\n{broken\n" + json.dumps(sound_rows()[1]).encode()
    )
    outcome = check(lines)
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("line 3", "record")]
    assert outcome.clean() == sound_rows(2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.json", '\n [{"a": 1},\n [{"b": "\u2028"}, 3], 4]'),
        ("one.json", '{\n"a": 1}'),
        ("lines.jsonl", '\ufeff{"a": "\u2028"}\n\n[{"b": 2}, {"c": 3}]\r\n{broken\n{"d": 4}'),
    ],
)
def test_rows_read_one_by_one_are_those_that_training_reads(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    expected = read_rows(str(path), lambda place, reason: None)
    assert list(iter_rows(str(path), expected[0].location.startswith("line"))) == expected


def test_packs_lose_their_bad_records_and_must_fit(check, films: Path):
    rows = sound_rows()
    packs = write(films / "packs.json", [[rows[0], row("film9.png", "None.")], [rows[1], rows[2]], rows[3:]])
    with pytest.raises(UserError, match="set --data_packing True"):
        check(packs)
    outcome = check(packs, "--data_packing", "True")
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0 item 1", "file")]
    assert outcome.clean() == [[rows[0]], rows[1:3], rows[3:]]
    outcome = check(packs, "--data_packing", "True", "--model_max_length", "120", out="short")
    assert {each["row"] for each in outcome.problems if each["check"] == "length"} >= {"row 2 item 0", "row 2 item 4"}


def test_each_of_several_files_gets_its_clean_copy_and_one_without_a_usable_row_does_not_hide_the_others(
    check, films: Path
):
    (films / "other").mkdir()
    first, second = write(films / "a.json", sound_rows(3)), write(films / "b.json", [row("film9.png", "None.")])
    outcome = check(f"{first}, {second}")
    assert [(each["file"], each["row"]) for each in outcome.problems] == [(str(second), "row 0")]
    assert outcome.clean("clean_a.json") == sound_rows(3)
    assert outcome.clean("clean_b.json") == []
    assert outcome.told("records in clean_a.json") == "3"
    alone = check(second, out="alone")
    assert (alone.code, alone.clean()) == (1, []) and "no record is left" in alone.text


def test_a_set_named_twice_is_not_its_own_duplicate(check, films: Path):
    dataset = write(films / "train.json", sound_rows())
    outcome = check(f"{dataset},{dataset}%50")
    assert (outcome.code, outcome.clean()) == (0, sound_rows())
    assert outcome.told("records") == "12"


def test_half_a_surrogate_pair_in_a_key_that_training_ignores_is_kept(check, films: Path):
    rows = [row("film0.png", "It is.", note="\ud83d")]
    assert check(write(films / "train.json", rows)).clean() == rows


def test_nothing_is_written_over(check, films: Path, tmp_path: Path):
    dataset = write(films / "train.json", sound_rows())
    assert check(dataset).code == 0
    with pytest.raises(UserError, match="already holds .*clean.json"):
        check(dataset)
    outcome = check(dataset, "--overwrite")
    assert outcome.code == 0
    with pytest.raises(UserError, match="is what this command reads .*would be written over"):
        check(tmp_path / "out" / "clean.json", "--overwrite")
    assert outcome.clean() == sound_rows()


def test_a_check_that_fails_leaves_no_file(check, films: Path, tmp_path: Path):
    dataset = films / "train.json"
    dataset.write_text('[{"image": ')
    with pytest.raises(UserError, match="malformed JSON"):
        check(dataset)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_matplotlib_all_but_the_histogram_is_there(check, films: Path, monkeypatch: pytest.MonkeyPatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name != "matplotlib" and found(name, *rest))
    outcome = check(write(films / "train.json", sound_rows()))
    assert "no token_lengths.png: matplotlib is not installed" in outcome.text
    assert sorted(path.name for path in outcome.out.iterdir()) == ["clean.json", "problems.jsonl"]


RUN = {
    "tune_mm_llm": True,
    "tune_mm_mlp": True,
    "lora_enable": True,
    "lora_r": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
}


@pytest.mark.parametrize("mode", [{}, {"data_flatten": True}, {"data_packing": True}], ids=str)
def test_batches_steps_and_memory_are_those_that_a_dry_run_tells(
    check, standin: Path, films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: dict
):
    rows = [row(f"film{number}.png", "word " * (3 + number * 9)) for number in range(8)]
    dataset = write(films / "train.json", rows)
    flags = [word for name, value in (RUN | mode).items() for word in (f"--{name}", str(value))]
    outcome = check(dataset, *flags)
    required = ["--model_name_or_path", standin, "--dataset_use", dataset, "--output_dir", tmp_path / "run"]
    required += ["--model_max_length", 512, "--media_cache_dir", tmp_path, "--use_cpu", "True", "--report_to", "none"]
    with caplog.at_level("INFO", "qwenvl.train.plan"):
        train([*map(str, required), *flags, "--dry_run", "True"])
    plan = {name.strip(): value for name, value in re.findall(r"^(\S[^\n]*?)  +(\S+)$", caplog.text, re.MULTILINE)}
    name = "packed" if "data_packing" in mode else "flattened" if mode else "padded"
    batches = outcome.told(f"{name} *").split()
    assert (batches[0], batches[3], batches[4]) == (
        plan["padding"],
        plan["batches per epoch and process"],
        plan["steps per epoch"],
    )
    assert outcome.told("tokens") == plan["tokens"]
    assert outcome.told("supervised tokens").split()[0] == plan["supervised tokens"]
    assert outcome.told("total") == plan["total"]


def test_more_processes_and_zero_take_fewer_steps_and_less_memory(check, films: Path):
    dataset = write(films / "train.json", sound_rows())
    whole = ["--tune_mm_llm", "True", "--bf16", "True"]
    one = check(dataset, *whole)
    four = check(dataset, *whole, "--processes", "4", "--deepspeed", REPOSITORY / "scripts/zero3.json", out="four")
    assert one.told("padded *").split()[-1] == "1"
    assert float(four.told("total")) <= float(one.told("total"))
    flags = ["--deepspeed", str(REPOSITORY / "scripts/zero3.json"), "--processes", "4", "--out", "x"]
    assert parse_check_arguments(flags).sharding == Sharding(4, 3)


def test_what_the_limit_drops_is_told_and_shown(check, films: Path):
    rows = [*sound_rows(), row("film0.png", "word " * 600), row("film1.png", "word " * 700)]
    outcome = check(write(films / "train.json", rows))
    assert outcome.told("records over --model_max_length 512") == "2"
    assert int(outcome.told("tokens of a record, most").replace(",", "")) > 700
    assert outcome.told("records") == "8"


def test_tokens_of_a_custom_encoder_are_counted_by_its_own_processor(check, standin: Path, films: Path, tmp_path: Path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    Dinov2Model(config).save_pretrained(tmp_path / "rad-dino")
    swap = ["--custom_vision_encoder", "rad_dino", "--custom_vision_pretrained_path", str(tmp_path / "rad-dino")]
    dataset = write(films / "train.json", sound_rows())
    outcome = check(dataset, *swap)
    flags = parse_check_arguments(
        ["--model_name_or_path", str(standin), "--dataset_use", str(dataset), *swap, "--out", "x"]
    )
    encoder = DataCheck(flags).encoder
    records = read_annotations(str(dataset), str(films), BadSampleTracker()).records
    assert outcome.told("tokens") == f"{sum(len(encoder.encode(record)['input_ids']) for record in records):,}"
    assert outcome.told("tokens") != check(dataset, out="native").told("tokens")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--out", "x", "--decode", "half"], "invalid choice"),
        (["--dataset_use", "x"], "required: --out"),
        (["--out", "x", "--no_such_flag"], "is no flag of this program"),
        (["--out", "x", "--processes", "0"], "--processes 0: give 1 or more"),
        (["--out", "x", "--model_max_length", "0"], "--model_max_length 0"),
        (["--out", "x", "--deepspeed", "nowhere.json"], "--deepspeed nowhere.json"),
        (["--out", "x", "--vision_layer", "-2"], "--vision_layer -2 is for a custom encoder"),
        (["--out", "x"], "no data set named"),
    ],
)
def test_mistakes_on_the_command_line_are_told(flags: list[str], reason: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(reason)):
        main(flags)
    assert list(tmp_path.iterdir()) == []


def test_both_names_run_by_path_and_say_by_their_exit_code_what_they_found(standin: Path, films: Path, tmp_path: Path):
    dataset = write(films / "train.json", [*sound_rows(2), row("film9.png", "None.")])
    for tool, name, code in (("check_data", "train.json", 1), ("check_image", "nothing.json", 2)):
        command = [sys.executable, str(REPOSITORY / f"tools/{tool}.py"), "--model_name_or_path", str(standin)]
        command += ["--dataset_use", str(dataset.with_name(name)), "--out", str(tmp_path / tool)]
        done = subprocess.run(
            [*command, "--media_cache_dir", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
    assert re.search(r"^error: .*nothing.json: no such annotation file", done.stderr, re.MULTILINE)


def test_help_tells_the_own_options_first_and_those_of_training_by_name(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.count("\n") < 120
    own, _, training = text.partition("flags of training, which")
    assert "--same_picture" in own and "Two files are the same picture by their bytes" in " ".join(own.split())
    assert "--learning_rate" in training and "--max_image_megapixels" in training and "--same_picture" not in training


def test_the_made_up_archive_has_no_duplicates_of_its_own(check, tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SyntheticOptions(studies=60, film_size=32))
    command = ["--jpg_root", root, "--reports", root, "--out", tmp_path / "json", "--workers", 1]
    assert prepare.main([str(word) for word in command]) == 0
    train_file, valid_file = (tmp_path / "json" / f"mimic_{name}.json" for name in ("train", "valid"))
    outcome = check(train_file, "--eval_dataset_use", valid_file)
    assert (outcome.code, outcome.problems) == (0, [])


def test_frames_of_videos_are_found_from_where_the_clean_file_is_written(check, films: Path):
    pair = ["film0.png", "film1.png"]
    (films / "clip").mkdir()
    for name in pair:
        (films / "clip" / name).write_bytes((films / name).read_bytes())
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "It "}]
    videos = [pair, [["clip/film0.png", "clip/film1.png"], pair], "clip", {"frames": pair, "fps": 4}]
    rows = []
    for number, video in enumerate(videos):
        marks = "<video>" * (2 if number == 1 else 1)
        said = [turns[0] | {"value": f"{marks}What?"}, turns[1] | {"value": f"It is {number}."}]
        rows.append({"video" if number != 1 else "videos": video, "fps": 2, "conversations": said})
    outcome = check(write(films / "train.json", rows), out="out")
    assert (outcome.code, outcome.told("records in clean.json")) == (0, "4")
    clean = outcome.out / "clean.json"
    assert check(clean, out="again").code == 0


def test_frames_in_training_and_evaluation_are_a_leak_whatever_their_rate(check, films: Path):
    (films / "copy.png").write_bytes((films / "film1.png").read_bytes())

    def clip(frames: list[str], fps: int, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": answer}]
        return {"video": frames, "fps": fps, "conversations": turns}

    train_file = write(
        films / "train.json", [clip(["film0.png", "film1.png"], 2, "A."), clip(["film2.png", "film3.png"], 2, "B.")]
    )
    outcome = check(
        train_file, "--eval_dataset_use", write(films / "valid.json", [clip(["film0.png", "copy.png"], 4, "C.")])
    )
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0", "leak")]
    assert outcome.problems[0]["path"] == str(films / "film0.png")


def test_frames_that_leave_the_folder_are_told(check, films: Path):
    (films / "sub").mkdir()
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]
    outcome = check(
        write(
            films / "sub" / "train.json",
            [{"video": ["../film0.png", "../film1.png"], "fps": 2, "conversations": turns}],
        )
    )
    assert [each["check"] for each in outcome.problems] == ["outside"]


def test_what_training_tells_of_the_records_is_told_by_the_check(check, films: Path, tmp_path: Path, caplog):
    model = build_standin(tmp_path / "thinking", thinking=True)
    write(films / "train.json", [row("film0.png", "It is 0.", mood="good"), row("film1.png", "It is 1.")])
    assert check(films / "train.json", "--model_name_or_path", model).code == 0
    told = "\n".join(caplog.messages)
    assert "`mood` is not read (1 of 2 records)" in told and "2 of 2 answers come without a thought" in told


# One record for each way in which a record is read, made into several samples, or refused.
MIXED_ROWS = [
    row("film0.png", "It is 0.", view="PA"),
    {"query": "<image>Q?", "response": "A.", "images": ["film1.png"], "history": [["Q0?", "A0."]]},
    {"prompt": "Q?", "completion": "A."},
    {"image_path": "film2.png", "conversations": row(None, "A.")["conversations"]},
    row("film9.png", "Missing."),
    row("film3.png", "<|box_start|>(1,2),(3,4)<|box_end|>"),
    row("film3.png", "Sure. <think>R</think> A."),
    row("film3.png", "<think>R</think> A."),
    row("film3.png", "A.", audios=["a.wav"]),
    {
        "messages": [
            {"role": "user", "content": "Q?"},
            {"role": "assistant", "content": "A.", "reasoning_content": "R."},
        ]
    },
    {
        "conversations": [
            {"from": role, "value": text}
            for number in range(2)
            for role, text in (("human", f"Q{number}?"), ("gpt", f"<think>\nR{number}\n</think>\n\nA{number}."))
        ]
    },
    {"video": ["film4.png", "film5.png"], "fps": 2, "conversations": row(None, "It moves.")["conversations"]},
    row("film6.png", "word " * 600),
]


@pytest.mark.parametrize("thinking", [False, True])
def test_the_check_and_training_judge_every_record_alike(check, films: Path, tmp_path: Path, thinking: bool):
    model = build_standin(tmp_path / "model", thinking=thinking)
    dataset = write(films / "train.json", MIXED_ROWS)
    outcome = check(dataset, "--model_name_or_path", model, "--duplicates", "none")
    data_args = DataArguments(dataset_use=str(dataset), bad_sample_policy="skip", media_cache_dir=str(tmp_path))
    training_args = TrainingArguments(output_dir=str(tmp_path / "run"), model_max_length=512, use_cpu=True, bf16=False)
    data = make_supervised_data_module(load_processor(str(model)), data_args, training_args)
    refused = {bad.where.removeprefix(f"{dataset} "): bad.reason for bad in data.bad_samples.samples}
    assert {each["row"]: each["reason"] for each in outcome.problems} == refused
    assert outcome.told("records in clean.json") == str(len(MIXED_ROWS) - len(refused))
    assert int(outcome.told("records")) == len(data.train_dataset)
    assert int(outcome.told("tokens").replace(",", "")) == data.train_dataset.lengths.sum()

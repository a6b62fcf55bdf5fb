"""Tests of the pre-flight check as a whole: what it finds, keeps and writes, and that training agrees."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from qwenvl.bench.standin import build_standin
from qwenvl.check.data import DataCheck, check_data
from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.data.data_processor import make_supervised_data_module
from qwenvl.errors import UserError
from qwenvl.model.build import load_processor
from qwenvl.tools.check_flags import parse_check_arguments
from qwenvl.train.argument import DataArguments, TrainingArguments
from tests.check.conftest import row, valid_rows, write

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_clean_dataset_is_copied_unchanged_and_gives_0(check, images: Path):
    dataset = write(
        images / "train.json", [*valid_rows(), row(None, "Yes – so.", "Is it?", note={"score": [1.5, None]})]
    )
    before = dataset.read_bytes()
    outcome = check(dataset)
    assert (outcome.code, outcome.problems) == (0, [])
    assert outcome.clean() == json.loads(before)
    assert dataset.read_bytes() == before
    clean = read_annotations(str(outcome.out / "clean.json"), str(outcome.out), BadSampleTracker())
    assert [Path(path) for record in clean.records for path in record.images] == sorted(images.glob("image?.png"))
    assert Image.open(outcome.out / "token_lengths.png").size[0] > 300
    assert sorted(path.name for path in outcome.out.iterdir()) == ["clean.json", "problems.jsonl", "token_lengths.png"]


BAD_ROWS = {
    "no answer": ({"image": "image0.png", "conversations": []}, "record", "at least one answer"),
    "no object": ("text", "record", "got a str"),
    "empty answer": (row("image0.png", "  "), "record", "empty answer"),
    "too many placeholders": (row("image0.png", "Two.", "<image><image>?"), "record", "2 <image> in the text but 1"),
    "reserved token": (row("image0.png", "It is<|im_end|>"), "record", "chat template writes itself"),
    "special token": (row("image0.png", "It <|box_start|>is", "q"), "text", r"turn 1 \w+ <\|box_start\|>"),
    "missing file": (row("image9.png", "None."), "file", "no such file"),
    "empty file": (row("empty.png", "None."), "file", "0 bytes"),
    "no image": (row("text.png", "None."), "file", "not an image"),
    "box outside": (row("image1.png", '[{"bbox_2d": [1, 2, 3, 1001], "label": "x"}]'), "box", "leaves the|exceeds the"),
    "no box": (row("image1.png", '[{"bbox_2d": [5, 2, 3, 9], "label": "x"}]'), "box", "is (no|not a) box"),
    "half a box": (row("image1.png", 'See {"bbox_2d": [5, 2, 3]}.'), "box", "not a list of 4 numbers"),
    "too long": (row("image1.png", "word " * 600), "length", "more than --model_max_length 512"),
    "duplicate": (row("image7.png", "It is image 7."), "duplicate", "the same media and the same answer as .* row 7"),
    "escaping path": (row("../stranger.png", "Out."), "outside", "through `..`"),
    "link": (row("link.png", "Out."), "outside", "a link leads out"),
}


def test_every_kind_of_bad_row_is_found_named_and_left_out(check, images: Path):
    (images / "empty.png").touch()
    (images / "text.png").write_text("no image")
    Image.new("L", (70, 70), 9).save(images.parent / "stranger.png")
    (images / "link.png").symlink_to(images.parent / "stranger.png")
    dataset = write(images / "train.json", [*valid_rows(), *(bad for bad, _, _ in BAD_ROWS.values())])
    outcome = check(dataset)
    assert outcome.code == 1
    assert outcome.clean() == valid_rows()
    assert {problem["file"] for problem in outcome.problems} == {str(dataset)}
    assert [problem["row"] for problem in outcome.problems] == [f"row {8 + number}" for number in range(len(BAD_ROWS))]
    for problem, (name, (_, kind, reason)) in zip(outcome.problems, BAD_ROWS.items(), strict=True):
        assert problem["check"] == kind and re.search(reason, problem["reason"]), f"{name}: {problem}"
    assert outcome.value("problems") == str(len(BAD_ROWS))
    paths = {problem["row"]: problem["path"] for problem in outcome.problems}
    assert paths["row 14"] == str(images / "image9.png") and paths["row 8"] is None


def test_packs_lose_their_bad_records_and_must_fit(check, images: Path):
    rows = valid_rows()
    packs = write(images / "packs.json", [[rows[0], row("image9.png", "None.")], [rows[1], rows[2]], rows[3:]])
    with pytest.raises(UserError, match="set --data_packing True"):
        check(packs)
    outcome = check(packs, "--data_packing", "True")
    assert [(each["row"], each["check"]) for each in outcome.problems] == [("row 0 item 1", "file")]
    assert outcome.clean() == [[rows[0]], rows[1:3], rows[3:]]
    outcome = check(packs, "--data_packing", "True", "--model_max_length", "120", out="short")
    assert {each["row"] for each in outcome.problems if each["check"] == "length"} >= {"row 2 item 0", "row 2 item 4"}


def test_each_of_several_files_gets_its_clean_copy_and_one_without_a_usable_row_does_not_hide_the_others(
    check, images: Path
):
    (images / "other").mkdir()
    first, second = write(images / "a.json", valid_rows(3)), write(images / "b.json", [row("image9.png", "None.")])
    outcome = check(f"{first}, {second}")
    assert [(each["file"], each["row"]) for each in outcome.problems] == [(str(second), "row 0")]
    assert outcome.clean("clean_a.json") == valid_rows(3)
    assert outcome.clean("clean_b.json") == []
    assert outcome.value("records in clean_a.json") == "3"
    alone = check(second, out="alone")
    assert (alone.code, alone.clean()) == (1, []) and "no record is left" in alone.text


def test_no_file_is_overwritten_without_overwrite(check, images: Path, tmp_path: Path):
    dataset = write(images / "train.json", valid_rows())
    assert check(dataset).code == 0
    with pytest.raises(UserError, match="already holds .*clean.json"):
        check(dataset)
    outcome = check(dataset, "--overwrite")
    assert outcome.code == 0
    with pytest.raises(UserError, match="is what this command reads .*would be written over"):
        check(tmp_path / "out" / "clean.json", "--overwrite")
    assert outcome.clean() == valid_rows()


def test_a_check_that_fails_leaves_no_file(check, images: Path, tmp_path: Path):
    dataset = images / "train.json"
    dataset.write_text('[{"image": ')
    with pytest.raises(UserError, match="malformed JSON"):
        check(dataset)
    assert list((tmp_path / "out").iterdir()) == []


def test_tokens_of_a_custom_encoder_are_counted_by_its_processor(check, standin: Path, images: Path, tmp_path: Path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    Dinov2Model(config).save_pretrained(tmp_path / "rad-dino")
    swap = ["--custom_vision_encoder", "rad_dino", "--custom_vision_pretrained_path", str(tmp_path / "rad-dino")]
    dataset = write(images / "train.json", valid_rows())
    outcome = check(dataset, *swap)
    flags = parse_check_arguments(
        ["--model_name_or_path", str(standin), "--dataset_use", str(dataset), *swap, "--out", "x"]
    )
    encoder = DataCheck(flags).encoder
    records = read_annotations(str(dataset), str(images), BadSampleTracker()).records
    assert outcome.value("tokens") == f"{sum(len(encoder.encode(record)['input_ids']) for record in records):,}"
    assert outcome.value("tokens") != check(dataset, out="native").value("tokens")


def test_both_names_run_by_path_and_return_an_exit_code(standin: Path, images: Path, tmp_path: Path):
    dataset = write(images / "train.json", [*valid_rows(2), row("image9.png", "None.")])
    for tool, name, code in (("check_data", "train.json", 1), ("check_image", "nothing.json", 2)):
        command = [sys.executable, str(REPOSITORY / f"tools/{tool}.py"), "--model_name_or_path", str(standin)]
        command += ["--dataset_use", str(dataset.with_name(name)), "--out", str(tmp_path / tool)]
        done = subprocess.run(
            [*command, "--media_cache_dir", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
    assert re.search(r"^error: .*nothing.json: no such annotation file", done.stderr, re.MULTILINE)


def test_the_check_logs_what_training_logs_about_records(check, images: Path, tmp_path: Path, caplog):
    model = build_standin(tmp_path / "thinking", thinking=True)
    write(images / "train.json", [row("image0.png", "It is 0.", mood="good"), row("image1.png", "It is 1.")])
    assert check(images / "train.json", "--model_name_or_path", model).code == 0
    log = "\n".join(caplog.messages)
    assert "`mood` is not read (1 of 2 records)" in log and "2 of 2 answers" in log


# One record for each way in which a record is read, made into several samples, or refused.
MIXED_ROWS = [
    row("image0.png", "It is 0.", view="PA"),
    {"query": "<image>Q?", "response": "A.", "images": ["image1.png"], "history": [["Q0?", "A0."]]},
    {"prompt": "Q?", "completion": "A."},
    {"image_path": "image2.png", "conversations": row(None, "A.")["conversations"]},
    row("image9.png", "Missing."),
    row("image3.png", "<|box_start|>(1,2),(3,4)<|box_end|>"),
    row("image3.png", "Sure. <think>R</think> A."),
    row("image3.png", "<think>R</think> A."),
    row("image3.png", "A.", audios=["a.wav"]),
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
    {"video": ["image4.png", "image5.png"], "fps": 2, "conversations": row(None, "It moves.")["conversations"]},
    row("image6.png", "word " * 600),
]


@pytest.mark.parametrize("thinking", [False, True])
def test_the_check_and_training_judge_every_record_alike(check, images: Path, tmp_path: Path, thinking: bool):
    model = build_standin(tmp_path / "model", thinking=thinking)
    dataset = write(images / "train.json", MIXED_ROWS)
    outcome = check(dataset, "--model_name_or_path", model, "--duplicates", "none")
    data_args = DataArguments(dataset_use=str(dataset), bad_sample_policy="skip", media_cache_dir=str(tmp_path))
    training_args = TrainingArguments(output_dir=str(tmp_path / "run"), model_max_length=512, use_cpu=True, bf16=False)
    data = make_supervised_data_module(load_processor(str(model)), data_args, training_args, 512)
    refused = {bad.full_location.removeprefix(f"{dataset} "): bad.reason for bad in data.bad_samples.samples}
    assert {each["row"]: each["reason"] for each in outcome.problems} == refused
    assert outcome.value("records in clean.json") == str(len(MIXED_ROWS) - len(refused))
    assert int(outcome.value("records")) == len(data.train_dataset)
    assert int(outcome.value("tokens").replace(",", "")) == data.train_dataset.lengths.sum()


def test_a_missing_file_and_an_earlier_output_are_reported_before_the_model_is_loaded(images: Path, tmp_path: Path):
    dataset = write(images / "train.json", valid_rows(1))
    (tmp_path / "clean.json").touch()
    flags = ["--model_name_or_path", str(tmp_path / "nowhere"), "--out", str(tmp_path)]
    for given, message in [
        (["--dataset_use", str(images / "none.json")], "none.json: no such annotation file"),
        (["--dataset_use", str(dataset), "--eval_dataset_use", str(images / "no.json")], "no such annotation file"),
        (["--dataset_use", str(dataset)], "already holds clean.json"),
        (["--dataset_use", str(dataset), "--overwrite"], "nowhere: no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            check_data(parse_check_arguments([*flags, *given]))

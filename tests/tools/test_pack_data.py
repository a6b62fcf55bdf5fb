"""Packing ahead of training: the file holds every record once, and training takes it as it is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from qwenvl.bench.standin import build_standin
from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.data.packing import plan_packs
from qwenvl.data.thinking_turns import split_thinking_turns
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.tools.pack_data import main
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.prepare import prepare

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return an annotation file of 30 records with pictures."""
    Image.new("RGB", (96, 64)).save(tmp_path / "film.png")
    rows = [
        {
            "image": "film.png",
            "id": number,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "It is " + "so " * (number % 9) + "grey."},
            ],
        }
        for number in range(30)
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def pack(dataset: Path, standin: Path, *flags: str) -> None:
    """Run the tool with a small capacity."""
    required = ["--model_name_or_path", str(standin), "--dataset_use", str(dataset), "--model_max_length", "200"]
    assert main([*required, "--media_cache_dir", str(dataset.parent), *flags]) == 0


def test_the_packed_file_holds_every_row_once_and_no_pack_is_too_long(dataset: Path, standin: Path, processor):
    pack(dataset, standin)
    packed = dataset.with_name("train_packed_200.json")
    rows = json.loads(packed.read_text(encoding="utf-8"))
    assert sorted(row["id"] for pack in rows for row in pack) == list(range(30))
    assert all(row == json.loads(dataset.read_text())[row["id"]] for pack in rows for row in pack)
    annotations = read_annotations(str(packed), str(dataset.parent), BadSampleTracker())
    encoder = RecordEncoder(processor)
    lengths = [len(encoder.encode(record)["input_ids"]) for record in annotations.records]
    assert max(sum(lengths[index] for index in pack) for pack in annotations.packs) <= 200
    assert len(annotations.packs) < 30


def test_jsonl_rows_are_found_by_their_line(dataset: Path, standin: Path):
    rows = json.loads(dataset.read_text())
    lines = dataset.with_suffix(".jsonl")
    lines.write_text("\n" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pack(lines, standin, "--out", str(dataset.with_name("out.json")))
    packed = json.loads(dataset.with_name("out.json").read_text(encoding="utf-8"))
    assert sorted(row["id"] for pack in packed for row in pack) == list(range(30))


def test_skipped_records_are_left_out_and_told(dataset: Path, standin: Path, capsys: pytest.CaptureFixture):
    rows = json.loads(dataset.read_text())
    rows[3]["conversations"][1]["value"] = "word " * 300
    dataset.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 3: .* tokens are more than --model_max_length 200"):
        pack(dataset, standin)
    pack(dataset, standin, "--bad_sample_policy", "skip")
    packed = json.loads(dataset.with_name("train_packed_200.json").read_text())
    assert sorted(row["id"] for pack in packed for row in pack) == [number for number in range(30) if number != 3]
    assert "records left out" in capsys.readouterr().out


def test_pixel_limits_change_the_packs_as_they_change_training(dataset: Path, standin: Path):
    pack(
        dataset, standin, "--out", str(dataset.with_name("small.json")), "--min_pixels", "1024", "--max_pixels", "1024"
    )
    pack(dataset, standin, "--out", str(dataset.with_name("large.json")), "--min_pixels", "65536")
    small, large = (len(json.loads(dataset.with_name(f"{size}.json").read_text())) for size in ("small", "large"))
    assert small < large


def test_a_file_that_is_there_or_packed_already_is_not_packed_over(dataset: Path, standin: Path):
    pack(dataset, standin)
    with pytest.raises(UserError, match="already holds train_packed_200.json"):
        pack(dataset, standin)
    pack(dataset, standin, "--overwrite")
    with pytest.raises(UserError, match="already packed"):
        pack(dataset.with_name("train_packed_200.json"), standin)


@pytest.mark.parametrize("name", ["train.json", "film.png", "link.json"])
def test_what_is_packed_is_never_written_over(dataset: Path, standin: Path, name: str):
    (dataset.parent / "link.json").symlink_to(dataset)
    before = {path: path.read_bytes() for path in dataset.parent.iterdir()}
    with pytest.raises(UserError, match=f"{name} is what this command reads .*would be written over"):
        pack(dataset, standin, "--out", str(dataset.parent / name), "--overwrite")
    assert {path: path.read_bytes() for path in before} == before


def test_contradicting_limits_are_refused_as_in_training(dataset: Path, standin: Path):
    with pytest.raises(UserError, match="--min_pixels 9000 is above --max_pixels 8000"):
        pack(dataset, standin, "--min_pixels", "9000", "--max_pixels", "8000")


def test_several_data_sets_are_refused(dataset: Path, standin: Path):
    with pytest.raises(UserError, match="pack them one by one"):
        pack(Path(f"{dataset},{dataset}"), standin)


def test_the_tool_runs_by_path_and_a_mistake_is_one_line(tmp_path: Path):
    command = [sys.executable, str(REPOSITORY / "tools/pack_data.py"), "--dataset_use", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the following arguments are required")


def test_a_pack_holds_all_samples_of_a_chat_with_thoughts(tmp_path: Path):
    model = build_standin(tmp_path / "thinking", thinking=True)
    chat = [
        {"from": role, "value": text}
        for number in range(3)
        for role, text in (("human", f"Q{number}"), ("gpt", f"<think>\nR{number}\n</think>\n\nA{number}"))
    ]
    plain = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "<think>\nR\n</think>\n\nA"}]
    dataset = tmp_path / "train.json"
    dataset.write_text(json.dumps([{"conversations": turns} for turns in (chat, plain, plain)]))
    pack(dataset, model)
    packed = json.loads((tmp_path / "train_packed_200.json").read_text())
    assert sorted(len(row["conversations"]) for each in packed for row in each) == [2, 2, 6]
    encoder = RecordEncoder(AutoProcessor.from_pretrained(model))
    annotations = read_annotations(str(tmp_path / "train_packed_200.json"), str(tmp_path), BadSampleTracker())
    annotations, _ = split_thinking_turns(annotations, encoder, "each")
    lengths = [len(encoder.encode(record)["input_ids"]) for record in annotations.records]
    assert len(lengths) == 5 and max(sum(lengths[index] for index in each) for each in annotations.packs) <= 200


def test_a_packed_file_is_trained_on_where_it_is_written(dataset: Path, standin: Path, tmp_path: Path, caplog):
    rows = json.loads(dataset.read_text())
    rows.append({"video": ["film.png", "film.png"], "fps": 2, "conversations": rows[0]["conversations"][1:]})
    rows[-1]["conversations"] = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Gray."}]
    dataset.write_text(json.dumps(rows))
    (tmp_path / "elsewhere").mkdir()
    packed = tmp_path / "elsewhere" / "packed.json"
    pack(dataset, standin, "--out", str(packed))
    records = read_annotations(str(packed), str(packed.parent), BadSampleTracker(), str(tmp_path)).records
    assert len(records) == 31 and {path for record in records for path in record.images} == {str(tmp_path / "film.png")}
    assert "`id` is not read" not in caplog.text


def test_packing_for_a_swapped_run_counts_what_training_counts(
    dataset: Path, standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = f"{REPOSITORY / 'tests/train/own_encoder.py'}:TileEncoder"
    counted: list[list[int]] = []

    def keep(lengths: np.ndarray, *args: int) -> list[np.ndarray]:
        counted.append(sorted(lengths.tolist()))
        return plan_packs(lengths, *args)

    monkeypatch.setattr("qwenvl.check.pack_file.plan_packs", keep)
    pack(dataset, standin, "--out", str(tmp_path / "native.json"))
    pack(dataset, standin, "--out", str(tmp_path / "swapped.json"), "--custom_vision_encoder", encoder)
    native, swapped = counted

    model_args = ModelArguments(model_name_or_path=str(standin), custom_vision_encoder=encoder, tune_mm_mlp=True)
    data_args = DataArguments(
        dataset_use=str(tmp_path / "swapped.json"), data_packing=True, media_cache_dir=str(tmp_path)
    )
    training_args = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, model_max_length=200)
    planned = prepare(model_args, data_args, training_args).data.train_dataset.counts.total

    assert sorted(planned.tolist()) == swapped != native

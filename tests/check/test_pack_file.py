"""Tests of packing a file: the tokens of rows, the output, and what is refused."""

import json
from pathlib import Path

import pytest

from qwenvl.check.pack_file import PackOptions, count_rows, pack_dataset
from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.data.arguments import DataArguments
from qwenvl.data.encoding import RecordEncoder
from qwenvl.errors import UserError
from qwenvl.model.arguments import ModelArguments
from qwenvl.tools.pack_data import main
from tests.check.conftest import answers_and_bytes, make_record, row, valid_rows, write


def _pack(dataset: Path, standin: Path, **options) -> dict[str, object]:
    """Return the rows of the summary by their names."""
    data = DataArguments(dataset_use=str(dataset), media_cache_dir=str(dataset.parent))
    options = PackOptions(**{"model_max_length": 200} | options)
    return dict(pack_dataset(ModelArguments(model_name_or_path=str(standin)), data, options))


def test_a_row_has_the_tokens_of_all_its_samples(processor, tmp_path: Path):
    encoder, data = RecordEncoder(processor), DataArguments(dataset_use="x", media_cache_dir=str(tmp_path))
    records = [
        make_record(row, "Q?", answer) for row, answer in ((0, "A."), (2, "Longer answer."), (2, "B."), (5, "C."))
    ]
    lengths = [len(encoder.encode(record)["input_ids"]) for record in records]
    first, counts = count_rows(records, encoder, data)
    assert first == [records[0], records[1], records[3]]
    assert counts.total.tolist() == [lengths[0], lengths[1] + lengths[2], lengths[3]]


def test_the_summary_is_that_of_the_file_beside_the_annotations(images: Path, standin: Path):
    dataset = write(images / "train.json", valid_rows())
    summary = _pack(dataset, standin)
    packs = json.loads((images / "train_packed_200.json").read_text())
    assert sorted(item["id"] for pack in packs for item in pack) == list(range(8))
    assert summary["written to"] == images / "train_packed_200.json"
    assert (summary["records"], summary["packs of at most 200"]) == (8, len(packs))
    assert read_annotations(str(summary["written to"]), str(images), BadSampleTracker()).packs is not None


def test_what_cannot_be_packed_is_refused_and_nothing_is_written(images: Path, standin: Path):
    dataset, packed = write(images / "train.json", valid_rows()), write(images / "packs.json", [valid_rows()])
    long = write(images / "long.json", [row(None, "word " * 900)])
    before = sorted(images.iterdir())
    for given, options, message in [
        (packed, {}, "is already packed"),
        (f"{dataset},{dataset}", {}, "names 2 datasets; pack them one by one"),
        (dataset, {"out": str(dataset)}, "is what this command reads"),
        (dataset, {"out": str(packed)}, "already holds packs.json"),
        (long, {}, "--model_max_length 200"),
    ]:
        data = DataArguments(dataset_use=str(given), media_cache_dir=str(images.parent / "cache"))
        model = ModelArguments(model_name_or_path=str(standin))
        with pytest.raises(UserError, match=message):
            pack_dataset(model, data, PackOptions(200, **options))
    assert sorted(images.iterdir()) == before


def test_a_table_is_packed_into_json_that_holds_its_images(table: Path, flags: list[str], tmp_path: Path):
    assert main([*flags, "--dataset_use", str(table), "--out", str(tmp_path / "packed.json")]) == 0
    written = answers_and_bytes(tmp_path / "packed.json", tmp_path / "other")
    assert written == answers_and_bytes(table, tmp_path / "cache")

"""Tests of reading parquet files, saved datasets and datasets of the hub, with images inside; all offline."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from qwenvl.data import data_list, load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.rows import stream_rows
from qwenvl.errors import UserError


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Return a table of 3 questions, each with an image of its own size as Hugging Face stores it."""
    path = tmp_path_factory.mktemp("images") / "x.png"
    images = []
    for number in range(3):
        Image.new("RGB", (10 + number, 10)).save(path)
        images.append([{"path": f"{number}.png", "bytes": path.read_bytes()}])
    rows = {
        "images": images,
        "messages": [
            [{"role": "user", "content": f"<image>{number}?"}, {"role": "assistant", "content": "A."}]
            for number in range(3)
        ],
    }
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features)


def load(name: str, cache: Path) -> list[tuple[str, tuple[int, int]]]:
    """Return the question and the size of the image of each record."""
    records = load_datasets(name, 0, BadSampleTracker(), str(cache)).records
    loaded = []
    for record in records:
        assert Path(record.images[0]).parent.parent == cache / "media" and record.images[0].endswith(".png")
        with Image.open(record.images[0]) as image:
            loaded.append((record.turns[0].text, image.size))
    return loaded


EXPECTED = [(f"<image>{number}?", (10 + number, 10)) for number in range(3)]


def test_parquet_files_are_read_alone_by_pattern_and_by_folder(table: datasets.Dataset, tmp_path: Path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        table.shard(3, shard, contiguous=True).to_parquet(folder / f"train-0000{shard}-of-00003.parquet")
    cache = tmp_path / "cache"
    assert load(f"{folder}/train-00001-of-00003.parquet", cache) == EXPECTED[1:2]
    assert load(str(folder), cache) == load(f"{folder}/train-*.parquet", cache) == EXPECTED
    assert len(load(f"{folder}%67", cache)) == 2
    (folder / "test-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"several splits; name those of one: .*/test-\*.parquet or .*/train-\*.parquet"
    ):
        load(str(folder), cache)


def test_relative_paths_in_a_table_count_from_its_folder(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"x")
    table = datasets.Dataset.from_dict({"image": ["x.png"], "query": ["Q?"], "response": ["A."]})
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(tmp_path)
    for name in (f"{tmp_path}/t.parquet", str(tmp_path)):
        assert load_datasets(name, 0, BadSampleTracker()).records[0].images == (str(tmp_path / "x.png"),)


def test_a_saved_dataset_is_read_from_its_folder(table: datasets.Dataset, tmp_path: Path):
    table.select([2, 0]).save_to_disk(tmp_path / "saved")
    assert load(str(tmp_path / "saved"), tmp_path / "cache") == [EXPECTED[2], EXPECTED[0]]
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    assert load(f"{tmp_path}/both/train", tmp_path / "cache") == EXPECTED
    with pytest.raises(UserError, match="several splits; name one of them: .*/both/test or .*/both/train"):
        load(str(tmp_path / "both"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "called", "splits"),
    [
        ("hf:org/name", ("org/name",), ["train", "test"]),
        ("hf:org/name", ("org/name",), ["validation"]),
        ("hf:org/name:test", ("org/name",), ["train", "test"]),
        ("hf:org/name:small:test%50", ("org/name", "small"), ["train", "test"]),
    ],
)
def test_a_dataset_of_the_hub_is_named_with_its_split_and_its_configuration(
    table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, name: str, called: tuple, splits: list[str]
):
    calls = []

    def load_dataset(*args: Any) -> datasets.DatasetDict:
        calls.append(args)
        return datasets.DatasetDict(dict.fromkeys(splits, table))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (spec,) = data_list(name)
    assert len(list(stream_rows(spec.annotation_path, print))) == 3
    assert calls == [called] and spec.percent == (50 if name.endswith("%50") else 100)


def test_a_dataset_of_the_hub_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*args: Any) -> datasets.DatasetDict:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"hf:org/name: cannot read the dataset \(no network\)"):
        stream_rows("hf:org/name", print)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: datasets.DatasetDict(a=None, b=None))
    with pytest.raises(UserError, match="name one of its splits, as in hf:org/name:SPLIT: a, b"):
        stream_rows("hf:org/name", print)
    with pytest.raises(UserError, match="expected hf:org/name, hf:org/name:split or"):
        stream_rows("hf:a:b:c:d", print)


def test_a_table_that_is_none_is_one_line(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    for name, expected in (
        ("t.parquet", "cannot read the dataset"),
        ("no.parquet", "no such annotation file"),
        ("no-*.parquet", "no such parquet files"),
        ("empty", "a folder without parquet files"),
    ):
        with pytest.raises(UserError, match=expected):
            stream_rows(str(tmp_path / name), print)


def test_a_damaged_table_is_named_with_the_row(table: datasets.Dataset, tmp_path: Path):
    datasets.concatenate_datasets([table] * 200).to_parquet(tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[2000:9000] = b"\xff" * 7000
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"t.parquet: cannot read it after row \d+"):
        list(stream_rows(str(tmp_path / "t.parquet"), print))


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package datasets .* pip install -e .\[datasets\]"):
        stream_rows(str(tmp_path / "t.parquet"), print)

"""Tests of naming, finding and sampling datasets."""

import gzip
import json
from pathlib import Path

import pytest

import qwenvl.data
from qwenvl.data import DatasetSpec, data_dict, data_list, load_datasets
from qwenvl.data.annotations import BadSampleTracker
from qwenvl.data.record_table import RecordSelection
from qwenvl.errors import UserError


def rows(name: str, count: int) -> list[dict]:
    """Return raw records whose questions are "name 0", "name 1"..."""
    return [
        {"conversations": [{"from": "human", "value": f"{name} {index}"}, {"from": "gpt", "value": "yes"}]}
        for index in range(count)
    ]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the datasets a (20 records), b (10) and packed (5 packs of 2) and return their folder."""
    packed = rows("packed", 10)
    contents = {"a": rows("a", 20), "b": rows("b", 10), "packed": [packed[i : i + 2] for i in range(0, 10, 2)]}
    for name, content in contents.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        monkeypatch.setitem(data_dict, name, {"annotation_path": str(path), "data_path": ""})
    return tmp_path


def questions(dataset_use: str, seed: int = 0) -> list[str]:
    """Return the question of each record that is loaded."""
    return [record.turns[0].text for record in load_datasets(dataset_use, seed, BadSampleTracker()).records]


def test_names_and_percentages_are_resolved(registered: Path):
    specs = data_list(" a%50, b,,a%12.5 ")
    assert [(spec.name, spec.percent) for spec in specs] == [("a", 50), ("b", 100), ("a", 12.5)]
    assert specs[0] == DatasetSpec("a", str(registered / "a.json"), "", 50)
    assert data_list(["a%50", "b", "a%12.5"]) == specs


@pytest.mark.parametrize("share", ["0", "150", "100.1", "x", "", "-5", "1e1", "nan", "5 0"])
def test_a_percentage_outside_its_range_is_refused(registered: Path, share: str):
    with pytest.raises(UserError, match="is not above 0 and at most 100"):
        data_list(f"a%{share}")


def test_an_unknown_name_is_refused_with_the_known_and_the_near_ones(registered: Path):
    with pytest.raises(UserError) as error:
        data_list("mimic_trian")
    assert "unknown dataset 'mimic_trian'; did you mean mimic_train" in str(error.value)
    assert "known: a, b, mimic_test, mimic_train, mimic_valid, packed" in str(error.value)
    with pytest.raises(UserError, match="unknown dataset 'zzz'; known: a, b"):
        data_list("zzz%50")


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_naming_no_dataset_is_refused(nothing):
    with pytest.raises(UserError, match="no dataset named"):
        data_list(nothing)


def test_an_annotation_file_is_named_by_its_path_with_media_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "100%25 mine"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"x")
    (folder / "t.jsonl").write_text("\n".join(json.dumps({**row, "image": "x.png"}) for row in rows("t", 4)))
    tracker = BadSampleTracker()
    assert len(load_datasets(f"{folder}/t.jsonl", 0, tracker).records) == 4
    assert len(load_datasets(f"{folder}/t.jsonl%50", 0, tracker).records) == 2
    monkeypatch.chdir(folder)
    assert load_datasets("t.jsonl", 0, tracker).records[0].images == (str(folder / "x.png"),)


def test_a_missing_annotation_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no.json: no such annotation file"):
        load_datasets(str(tmp_path / "no.json"), 0, BadSampleTracker())


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_mimic_is_found_through_its_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str):
    monkeypatch.setenv("MIMIC_DIR", str(tmp_path))
    (spec,) = data_list(f"mimic_{split}")
    assert spec == DatasetSpec(f"mimic_{split}", f"{tmp_path}/mimic_{split}.json", str(tmp_path), 100)


def test_mimic_is_found_in_the_current_folder_or_else_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, repository = tmp_path / "here", tmp_path / "repository"
    for folder in (here, repository):
        (folder / "data/mimic").mkdir(parents=True)
    (repository / "data/mimic/mimic_train.json").touch()
    monkeypatch.delenv("MIMIC_DIR", raising=False)
    monkeypatch.setattr(qwenvl.data, "_REPOSITORY", repository)
    monkeypatch.chdir(here)
    assert data_list("mimic_train")[0].annotation_path == str(repository / "data/mimic/mimic_train.json")
    (here / "data/mimic/mimic_train.json").touch()
    assert data_list("mimic_train")[0].annotation_path == "data/mimic/mimic_train.json"


def test_an_unset_variable_in_a_path_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(data_dict, "c", {"annotation_path": "${MY_DATA_ROOT}/c.json", "data_path": ""})
    monkeypatch.delenv("MY_DATA_ROOT", raising=False)
    with pytest.raises(UserError, match="environment variable MY_DATA_ROOT, which is not set"):
        data_list("c")


def test_datasets_follow_one_another_in_the_order_named(registered: Path):
    assert questions("b,a") == [f"b {i}" for i in range(10)] + [f"a {i}" for i in range(20)]


def test_the_same_dataset_named_twice_is_there_twice_and_read_once(registered: Path):
    assert questions("b,b") == [f"b {i}" for i in range(10)] * 2
    (registered / "b.json").write_text(json.dumps([*rows("b", 10), {"conversations": []}]))
    tracker = BadSampleTracker("skip", 1)
    assert len(load_datasets("b,b%50", 0, tracker).records) == 15
    assert tracker.count == 1


@pytest.mark.parametrize(("percent", "kept"), [("50", 10), ("12", 2), ("100", 20), ("3", 1)])
def test_a_percentage_keeps_the_nearest_number_of_distinct_records(registered: Path, percent: str, kept: int):
    sample = questions(f"a%{percent}")
    assert len(sample) == len(set(sample)) == kept


def test_a_sample_depends_on_the_seed_alone(registered: Path):
    assert questions("a%50", seed=1) == questions("a%50", seed=1)
    assert questions("a%50", seed=1) == questions("b,a%50", seed=1)[10:]
    assert questions("a%50", seed=1) != questions("a%50", seed=2)


def test_a_percentage_that_keeps_nothing_is_refused(registered: Path):
    with pytest.raises(UserError, match="b%1 keeps none of its 10 samples"):
        questions("b%1")


def test_packs_are_sampled_whole_and_their_indices_fit_the_joined_records(registered: Path):
    annotations = load_datasets("b%20,packed%40,a%10", 3, BadSampleTracker())
    texts = [[annotations.records[index].turns[0].text for index in pack] for pack in annotations.packs]
    assert [len(pack) for pack in texts] == [1, 1, 2, 2, 1, 1]
    assert sorted(sum(annotations.packs, [])) == list(range(8)) == list(range(len(annotations.records)))
    for first, second in texts[2:4]:
        assert int(first.split()[1]) % 2 == 0
        assert int(second.split()[1]) == int(first.split()[1]) + 1


def test_without_packed_files_there_are_no_packs(registered: Path):
    assert load_datasets("a,b%50", 0, BadSampleTracker()).packs is None


def test_other_kinds_of_files_are_named_by_their_path(tmp_path: Path):
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows("t", 4))).encode()))
    assert len(load_datasets(f"{tmp_path}/t.jsonl.gz%50", 0, BadSampleTracker()).records) == 2
    (spec,) = data_list(f"{tmp_path}%50")
    assert spec == DatasetSpec(str(tmp_path), str(tmp_path), str(tmp_path), 50)
    assert data_list("hf:org/name:train%5") == [DatasetSpec("hf:org/name:train", "hf:org/name:train", "", 5)]
    with pytest.raises(UserError, match="unknown dataset 'org/name'.* hf:org/name from the Hugging Face hub"):
        data_list("org/name")


def test_notes_of_all_files_are_kept_once(registered: Path):
    (registered / "b.json").write_text(json.dumps([row | {"mood": "good"} for row in rows("b", 10)]))
    assert load_datasets("a,b,b%50", 0, BadSampleTracker()).notes == ("`mood` is not read (10 of 10 records)",)


@pytest.mark.parametrize("dataset_use", ["a", "a%50,b", "b%20,packed%40,a%10", "a,b,b%50", "packed"])
def test_records_that_stay_on_disk_are_those_in_memory(registered: Path, tmp_path: Path, dataset_use: str):
    expected = load_datasets(dataset_use, 3, BadSampleTracker())
    on_disk = load_datasets(dataset_use, 3, BadSampleTracker(), None, tmp_path / "table")
    assert isinstance(on_disk.records, RecordSelection)
    assert [*on_disk.records] == expected.records and on_disk.packs == expected.packs

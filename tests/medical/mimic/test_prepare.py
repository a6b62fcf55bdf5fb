"""Tests of the MIMIC-CXR command on synthetic trees: options, priors, dropped studies, invalid input."""

import csv
import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.errors import UserError
from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic
from qwenvl.tools.prepare_mimic_cxr import main
from tests.medical.mimic.mimic_tree import REPORT, Tree

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "mimic")


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Return a function that runs the command on a root and gives the records of each split."""

    def run(root: Path, *options: str, reports: str | None = None) -> dict[str, list[dict[str, Any]]]:
        out = tmp_path / "out"
        source = ["--reports", str(root if reports is None else root / reports)]
        main(["--jpg_root", str(root), *source, "--out", str(out), "--workers", "1", "--overwrite", *options])
        names = {"train": "train", "validate": "valid", "test": "test"}
        return {split: json.loads((out / f"mimic_{name}.json").read_text()) for split, name in names.items()}

    return run


def _stats(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "stats.json").read_text())


def _dropped(tmp_path: Path) -> dict[str, str]:
    with open(tmp_path / "out" / "mimic_dropped.csv", newline="") as stream:
        return {row["study_id"]: row["reason"] for row in csv.DictReader(stream)}


def test_a_study_becomes_a_record_with_where_it_comes_from(tree: Tree, convert):
    root = tree.study(10000001, 50000001).study(10000002, 50000002, split="validate").write()
    records = convert(root)
    assert records["train"] == [
        {
            "id": "s50000001",
            "subject_id": 10000001,
            "study_id": 50000001,
            "dicom_id": ["d50000001-0"],
            "view": ["PA"],
            "split": "train",
            "image": [str(root / "files/p10/p10000001/s50000001/d50000001-0.jpg")],
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>\nIndication: Cough.\nDescribe the findings of this chest X-ray study.",
                },
                {"from": "gpt", "value": "The lungs of study 50000001 are clear."},
            ],
        }
    ]
    assert [record["study_id"] for record in records["validate"]] == [50000002]
    assert records["test"] == []


def test_the_output_is_read_by_the_training_data_layer(tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SyntheticOptions(studies=40, image_size=16))
    main(["--jpg_root", str(root), "--reports", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]
         + ["--views", "study", "--prior", "both", "--context", "indication", "technique", "comparison"])  # fmt: skip
    annotations = read_annotations(str(tmp_path / "out" / "mimic_train.json"), "", BadSampleTracker())
    assert len(annotations.records) == _stats(tmp_path)["records"]["train"] > 20
    assert max(len(record.images) for record in annotations.records) == 3


def test_relative_paths_start_below_the_image_folder(tree: Tree, convert):
    records = convert(tree.study(10000001, 50000001).write(), "--paths", "relative")
    assert records["train"][0]["image"] == ["files/p10/p10000001/s50000001/d50000001-0.jpg"]


@pytest.mark.parametrize(
    ("options", "views"),
    [
        (["--views", "frontal"], [["PA"]]),
        (["--views", "image"], [["PA"], ["AP"], ["LATERAL"], [""]]),
        (["--views", "study"], [["PA", "AP", "LATERAL", ""]]),
        (["--views", "study", "--max_images", "2"], [["PA", "AP"]]),
    ],
)
def test_views_are_chosen_frontal_first_and_pa_before_ap(tree: Tree, convert, options: list[str], views: list):
    records = convert(tree.study(10000001, 50000001, views="-,LATERAL,AP,PA").write(), *options)["train"]
    assert [record["view"] for record in records] == views
    for record in records:
        assert record["conversations"][0]["value"].count("<image>") == len(record["image"]) == len(record["view"])
    assert len({record["id"] for record in records}) == len(records)


def test_a_blank_view_is_taken_from_the_view_code(tree: Tree, convert):
    tree.study(10000001, 50000001, views="-")
    tree.metadata_rows[0] += "antero-posterior"
    assert convert(tree.write())["train"][0]["view"] == ["AP"]


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("findings", "The lungs of study 50000001 are clear."),
        ("impression", "Normal chest 50000001."),
        ("both", "Findings: The lungs of study 50000001 are clear.\nImpression: Normal chest 50000001."),
    ],
)
def test_targets(tree: Tree, convert, target: str, answer: str):
    records = convert(tree.study(10000001, 50000001).write(), "--target", target)
    assert records["train"][0]["conversations"][1]["value"] == answer


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["--context"], []),
        (["--context", "indication"], ["Indication: Old ___ cough."]),
        (["--context", "indication", "technique"], ["Indication: Old ___ cough."]),
        (["--context", "indication", "technique", "--missing_context", "na"],
         ["Indication: Old ___ cough.", "Technique: N/A"]),
        (["--context", "indication", "--deid", "sentence"], ["Indication: Old cough."]),
    ],
)  # fmt: skip
def test_context_falls_back_to_the_history_and_tells_or_omits_what_is_missing(tree, convert, options, lines):
    report = REPORT.replace("INDICATION:  Cough.", "HISTORY:  Old ___ cough.")
    records = convert(tree.study(10000001, 50000001, report=report).write(), *options, "--prompt", "Go.")
    assert records["train"][0]["conversations"][0]["value"].split("\n") == ["<image>", *lines, "Go."]


def _prior_tree(tree: Tree) -> Path:
    """One patient: 1 (morning, no frontal), 2 (noon, PA), 3 (same minute as 2), 4 (a day later), 5 in another split."""
    tree.study(10000001, 50000001, views="LATERAL", taken="21800101,80000.0")
    tree.study(10000001, 50000003, views="AP", taken="21800101,120000.0")
    tree.study(10000001, 50000002, views="LATERAL,PA", taken="21800101,120000.0")
    tree.study(10000001, 50000004, taken="21800102,0.5")
    tree.study(10000001, 50000005, taken="21800103,0.5", split="test")
    return tree.study(10000002, 50000006, taken="21800104,0.5").write()


def test_the_prior_is_the_latest_earlier_study_of_patient_and_split(tree: Tree, convert):
    records = convert(_prior_tree(tree), "--prior", "report", "--views", "study")
    priors = {record["study_id"]: record.get("prior_study_id") for split in records.values() for record in split}
    assert priors == {
        50000001: None,
        50000002: 50000001,
        50000003: 50000001,
        50000004: 50000003,
        50000005: None,
        50000006: None,
    }


def test_the_time_of_day_is_compared_as_a_number_not_as_text(tree: Tree, convert):
    tree.study(10000001, 50000001, taken="21800101,93000.0").study(10000001, 50000002, taken="21800101,101500.0")
    records = convert(tree.write(), "--prior", "report")["train"]
    assert [record.get("prior_study_id") for record in records] == [None, 50000001]


def test_a_prior_brings_its_frontal_image_and_its_report(tree: Tree, convert):
    records = convert(_prior_tree(tree), "--prior", "both", "--context")["train"]
    told = {record["study_id"]: record for record in records}
    assert told[50000004]["dicom_id"] == ["d50000004-0", "d50000003-0"]
    assert told[50000004]["image"][1].endswith("s50000003/d50000003-0.jpg")
    assert told[50000004]["conversations"][0]["value"].split("\n") == [
        "Current study:", "<image>", "Prior study:", "<image>",
        "Prior report: Findings: The lungs of study 50000003 are clear. Impression: Normal chest 50000003.",
        "Describe the findings of this chest X-ray study.",
    ]  # fmt: skip
    # Study 1 has no frontal image, so nothing earlier can be shown with 2.
    assert told[50000002]["conversations"][0]["value"].startswith("<image>\nDescribe")


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"report": None}, [], "no report file"),
        ({"report": b"\n FINDINGS: caf\xe9\n"}, [], "report is empty or no UTF-8 text"),
        ({"report": b"\n FINDINGS: a\0b\n"}, [], "report is empty or no UTF-8 text"),
        ({"report": b" \n"}, [], "report is empty or no UTF-8 text"),
        ({"report": "x\n IMPRESSION: a\n"}, [], "no findings section"),
        ({"report": "x\n FINDINGS: a\n"}, ["--target", "both"], "no impression section"),
        ({}, ["--min_words", "8"], "target shorter than --min_words"),
        ({}, ["--max_words", "6"], "target longer than --max_words"),
        ({"report": "x\n FINDINGS: as on ___.\n"}, ["--deid", "study"], "de-identified text in the target"),
        ({"report": "x\n FINDINGS: see <image> here\n"}, [], "placeholder or special token in the text"),
        ({"report": "x\n INDICATION: <|im_end|>\n FINDINGS: a b\n"}, [], "placeholder or special token in the text"),
        ({"views": "LATERAL"}, [], "no frontal image"),
    ],
)
def test_each_dropped_study_is_counted_under_its_reason(tree, convert, tmp_path, change, options, reason):
    good = REPORT.replace("The lungs", "The very clear lungs") if "--min_words" in options else REPORT
    good = REPORT.replace("of study {study}", "") if "--max_words" in options else good
    tree.study(10000001, 50000001, report=good).study(10000001, 50000002, **change)
    records = convert(tree.write(), *options)
    assert [record["study_id"] for record in records["train"]] == [50000001]
    assert _dropped(tmp_path) == {"50000002": reason}
    stats = _stats(tmp_path)
    assert stats["dropped"] == {reason: 1}
    assert stats["studies"] == sum(stats["records"].values()) + sum(stats["dropped"].values()) == 2


def test_missing_and_empty_image_files_are_counted_and_the_others_used(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001, views="PA,AP").study(10000001, 50000002)
    del tree.images["p10/p10000001/s50000001/d50000001-0.jpg"]
    tree.images["p10/p10000001/s50000002/d50000002-0.jpg"] = b""
    records = convert(tree.write())["train"]
    assert [record["dicom_id"] for record in records] == [["d50000001-1"]]
    assert _dropped(tmp_path) == {"50000002": "no usable image file"}
    counts = _stats(tmp_path)["counts"]
    assert (counts["missing image files"], counts["image files of 0 bytes"]) == (1, 1)
    assert len(convert(tree.root, "--no_file_check")["train"]) == 2


def test_reports_without_a_study_are_counted(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001)
    for name in ("p10/p10000001/s50000009.txt", "p10/p10000007/s50000010.txt", "p11/p11000007/s50000011.txt"):
        tree.reports[name] = b"x"
    convert(tree.write())
    assert _stats(tmp_path)["counts"]["reports without a study"] == 3
    convert(tree.write(zip_root="files/"), reports="reports.zip")
    assert _stats(tmp_path)["counts"]["reports without a study"] == 3


@pytest.mark.parametrize("zip_root", ["files/", "", "mimic-cxr-reports/files/", "a/b/c/"])
def test_a_zip_is_read_whatever_its_root(tree: Tree, convert, zip_root: str):
    root = tree.study(10000001, 50000001).write(zip_root=zip_root)
    assert len(convert(root, reports="reports.zip")["train"]) == 1


def _lie_about_the_size(path: Path) -> None:
    """Let the zip say that its largest member has 300 bytes."""
    data = path.read_bytes()
    path.write_bytes(data.replace((64 << 20).to_bytes(4, "little"), (300).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda path: None,
            "files/p10/p10000001/s50000001.txt would unpack to 67,108,864 bytes, and a report has at most 4,194,304",
        ),
        (_lie_about_the_size, "cannot unpack files/p10/p10000001/s50000001.txt"),
    ],
)
def test_a_report_in_the_zip_that_would_fill_the_memory_is_refused(tree: Tree, convert, change, reason: str):
    root = tree.study(10000001, 50000001).write()
    with zipfile.ZipFile(root / "reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/p10/p10000001/s50000001.txt", bytes(64 << 20))
    change(root / "reports.zip")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"reports.zip: {reason}"):
            convert(root, reports="reports.zip")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_pipes_and_huge_files_among_the_reports_and_tables_are_refused(tree: Tree, convert):
    root = tree.study(10000001, 50000001).write()
    report, table = root / "files/p10/p10000001/s50000001.txt", root / "mimic-cxr-2.0.0-split.csv"
    os.truncate(report, 1 << 40)
    with pytest.raises(UserError, match="s50000001.txt: 1,099,511,627,776 bytes are more than the 4,194,304"):
        convert(root)
    for path in (report, table):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(UserError, match=f"{path.name}: a named pipe"):
            convert(root)
    os.mkfifo(root / "pipe.zip")
    with pytest.raises(UserError, match="pipe.zip: a named pipe"):
        convert(root, reports="pipe.zip")


def test_a_study_in_two_splits_is_dropped(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001, views="PA,AP").study(10000001, 50000002)
    tree.split_rows[1] = tree.split_rows[1].replace("train", "test")
    convert(tree.write())
    assert _dropped(tmp_path) == {"50000001": "images in more than one split"}


def test_repeated_and_one_sided_rows_are_counted(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001)
    tree.split_rows += [tree.split_rows[0], "other,50000001,10000001,train"]
    tree.metadata_rows += [tree.metadata_rows[0], tree.metadata_rows[0].replace("d50000001-0", "unsplit")]
    assert len(convert(tree.write(), "--views", "image")["train"]) == 1
    counts = _stats(tmp_path)["counts"]
    assert counts["repeated rows in the split table"] == counts["repeated rows in the metadata table"] == 1
    assert counts["images only in the split table"] == counts["images without a split"] == 1


def test_packed_and_plain_tables_with_labels_give_the_same(tmp_path: Path, convert):
    plain = build_synthetic_mimic(tmp_path / "a", SyntheticOptions(studies=12, image_size=16, gzip_tables=False))
    first = convert(plain, "--labels", "chexpert", "--paths", "relative")
    for path in plain.glob("*.csv"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert convert(plain, "--labels", "chexpert", "--paths", "relative") == first
    assert first["train"][0]["labels"].keys() == {
        "Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Pneumothorax", "Support Devices"
    }  # fmt: skip


def test_workers_folder_and_zip_give_the_same_bytes(tmp_path: Path):
    folder = build_synthetic_mimic(tmp_path / "a", SyntheticOptions(studies=300, image_size=16))
    packed = build_synthetic_mimic(tmp_path / "b", SyntheticOptions(studies=300, image_size=16, zip_reports=True))
    outputs = []
    for number, (root, reports, workers) in enumerate(
        [(folder, folder, "1"), (folder, folder, "2"), (packed, packed / "mimic-cxr-reports.zip", "2")]
    ):
        out = tmp_path / f"out{number}"
        main(["--jpg_root", str(root), "--reports", str(reports), "--out", str(out), "--workers", workers]
             + ["--paths", "relative", "--prior", "both"])  # fmt: skip
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]["mimic_train.json"]) > 10_000


def test_conversion_is_fast_enough_for_the_whole_set(tmp_path: Path):
    """The aim is 2,000 studies a second; on a busy machine a single process must still be in its neighbourhood."""
    root = build_synthetic_mimic(tmp_path / "a", SyntheticOptions(studies=3000, image_size=16, zip_reports=True))
    started = time.perf_counter()
    main(["--jpg_root", str(root), "--reports", str(root / "mimic-cxr-reports.zip"), "--out", str(tmp_path / "out")]
         + ["--workers", "1"])  # fmt: skip
    assert 3000 / (time.perf_counter() - started) > 1000


def _set_cell(tree: Tree, table: str, row: int, old: str, new: str) -> None:
    rows = tree.split_rows if table == "split" else tree.metadata_rows
    rows[row] = rows[row].replace(old, new)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("split", "train", "dev", "line 2: split 'dev', expected one of train, validate, test"),
        ("split", "50000001,10", "x,10", "line 2: study_id 'x' is not a whole number"),
        ("split", "d50000001-0", "../../secret", "is not a valid file name"),
        ("split", ",train", "", "line 2: 3 cells, expected 4"),
        ("split", "train", "tr\0ain", "split 'tr.*ain'|NUL"),
        ("metadata", "50000001,PA", "50000009,PA", "is there twice, with 50000001 and with 50000009"),
        ("metadata", "21800101", "2180-01", "line 2: StudyDate '2180-01' is not a whole number"),
        ("metadata", "80000.5", "8h", "line 2: StudyTime '8h' is not a number"),
    ],
)
def test_a_wrong_cell_is_named_with_file_and_line(tree: Tree, convert, table, old, new, message):
    tree.study(10000001, 50000001)
    _set_cell(tree, table, 0, old, new)
    with pytest.raises(UserError, match=message):
        convert(tree.write())


def test_an_id_with_two_meanings_is_an_error(tree: Tree, convert):
    tree.study(10000001, 50000001)
    tree.split_rows.append(tree.split_rows[0].replace("train", "test"))
    with pytest.raises(UserError, match="line 3: dicom_id d50000001-0 is there twice"):
        convert(tree.write())


def test_missing_tables_and_columns_are_named_with_what_was_found(tree: Tree, convert):
    root = tree.study(10000001, 50000001).write()
    split = root / "mimic-cxr-2.0.0-split.csv"
    split.write_text(split.read_text().replace(",split", ",part"))
    with pytest.raises(UserError, match="no column split; found dicom_id, study_id, subject_id, part"):
        convert(root)
    split.rename(root / "other.csv")
    with pytest.raises(UserError, match="no table mimic-cxr-2.0.0-split.csv or .csv.gz, found mimic-cxr-2.0.0-meta"):
        convert(root)
    split.write_bytes(b"")
    with pytest.raises(UserError, match="no column .*; found an empty file"):
        convert(root)
    split.write_bytes(b"dicom_id,study_id,subject_id,split\n\xe9,1,1,train\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        convert(root)


def test_a_cut_off_download_is_the_users_error(tree: Tree, convert):
    root = tree.study(10000001, 50000001).write(zip_root="files/")
    table = root / "mimic-cxr-2.0.0-split.csv"
    table.with_name(table.name + ".gz").write_bytes(gzip.compress(table.read_bytes())[:-12])
    table.unlink()
    with pytest.raises(UserError, match="split.csv.gz: cannot read it .* is the download complete"):
        convert(root, reports="reports.zip")
    (root / "reports.zip").write_bytes((root / "reports.zip").read_bytes()[:-40])
    with pytest.raises(UserError, match="neither a folder nor a complete zip"):
        convert(root, reports="reports.zip")


def test_wrong_folders_are_named_with_what_was_found(tree: Tree, convert, tmp_path: Path):
    root = tree.study(10000001, 50000001).write(zip_root="files/")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="no folders p10 to p19 .* found nothing"):
        convert(root, reports="empty")
    with pytest.raises(UserError, match="no such folder or zip"):
        convert(root, reports="none")
    tree.reports = {"s50000001.txt": b"x"}
    tree.write(zip_root="flat/")
    with pytest.raises(UserError, match="no reports of the form .* found flat/s50000001.txt"):
        convert(root, reports="reports.zip")
    with pytest.raises(UserError, match="no folders p10 to p19"):
        main(["--jpg_root", str(root / "empty"), "--reports", str(root), "--out", str(tmp_path / "o")])


def test_a_report_twice_in_a_zip_is_an_error(tree: Tree, convert):
    tree.study(10000001, 50000001)
    tree.reports["again/p10/p10000001/s50000001.txt"] = b"x"
    with pytest.raises(UserError, match="it contains study 50000001 twice"):
        convert(tree.write(zip_root="files/"), reports="reports.zip")


def test_nothing_is_written_when_nothing_could_be_converted(tree: Tree, convert, tmp_path: Path):
    with pytest.raises(UserError, match="no study could be converted.*no report file"):
        convert(tree.study(10000001, 50000001, report=None).study(10000002, 50000002, report=None).write())
    assert list((tmp_path / "out").iterdir()) == []


def test_an_earlier_output_is_kept_unless_overwrite_is_given(tree: Tree, convert, tmp_path: Path):
    root = tree.study(10000001, 50000001).write()
    convert(root)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="already holds mimic_train.json"):
        main(["--jpg_root", str(root), "--reports", str(root), "--out", str(tmp_path / "out")])
    table = root / "mimic-cxr-2.0.0-metadata.csv"
    table.write_text(table.read_text() + "broken\n")
    with pytest.raises(UserError):
        convert(root)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_originals_are_only_read(tree: Tree, convert):
    root = tree.study(10000001, 50000001).write()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    convert(root, "--prior", "both")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()} == before


def test_statistics_hold_counts_and_no_text_of_a_report(tree: Tree, convert, tmp_path: Path):
    convert(_prior_tree(tree), "--prior", "both")

    def leaves(value: Any) -> list[Any]:
        return [leaf for item in value.values() for leaf in leaves(item)] if isinstance(value, dict) else [value]

    stats = _stats(tmp_path)
    assert all(type(leaf) is int for leaf in leaves(stats))
    assert stats["records"] == {"train": 4, "validate": 0, "test": 1}
    assert "10000001" not in json.dumps(stats)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--reports", "r", "--llava_rad", "a.json"],
        ["--llava_rad", "a.json", "--prior", "both"],
        ["--llava_rad", "a.json", "--split_csv", "a.csv"],
        ["--reports", "r", "--views", "side"],
        ["--reports", "r", "--max_images", "2"],
        ["--reports", "r", "--allow_outside"],
        ["--reports", "r", "--labels_csv", "a.csv"],
        ["--reports", "r", "--min_words", "5", "--max_words", "4"],
        ["--reports", "r", "--prompt", "<image> Go."],
    ],
)
def test_options_that_do_not_fit_or_would_do_nothing_are_refused(tree: Tree, tmp_path: Path, options: list[str]):
    root = tree.study(10000001, 50000001).write()
    options = [str(root) if option == "r" else option for option in options]
    with pytest.raises(UserError):
        main(["--jpg_root", str(root), "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_run_by_path_it_says_what_is_wrong_in_one_line_and_exits_with_2(tmp_path: Path):
    command = [sys.executable, str(REPOSITORY / "tools" / "prepare_mimic_cxr.py"), "--jpg_root", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--reports", "none.zip"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [["--split_csv"], ["--labels", "chexpert", "--labels_csv"], ["--llava_rad"]])
def test_an_input_in_the_output_folder_is_never_written_over(tree: Tree, tmp_path: Path, options: list[str]):
    root, out = tree.study(10000001, 50000001).write(), tmp_path / "out"
    out.mkdir()
    (out / "mimic_train.json").write_text("[]")
    command = ["--jpg_root", str(root), "--out", str(out), "--overwrite", *options, str(out / "mimic_train.json")]
    with pytest.raises(UserError, match="mimic_train.json is what this command reads"):
        main(command if "--llava_rad" in options else [*command, "--reports", str(root)])
    assert (out / "mimic_train.json").read_text() == "[]"

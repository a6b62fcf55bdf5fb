"""Tests of the records of a patient: choice of images, prior study, dropped studies."""

import json
from pathlib import Path

import pytest

from qwenvl.medical.mimic.reports import PatientReports
from qwenvl.medical.mimic.studies import MimicOptions, Patient, convert_patients
from qwenvl.medical.mimic.tables import ImageRow
from qwenvl.medical.records import ReportOptions
from tests.medical.mimic.mimic_tree import REPORT, Tree, read_dropped, read_stats


def test_a_study_becomes_a_record_with_its_origin(tree: Tree, convert):
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
def test_context_falls_back_to_the_history_and_includes_or_omits_missing_sections(tree, convert, options, lines):
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
    by_study = {record["study_id"]: record for record in records}
    assert by_study[50000004]["dicom_id"] == ["d50000004-0", "d50000003-0"]
    assert by_study[50000004]["image"][1].endswith("s50000003/d50000003-0.jpg")
    assert by_study[50000004]["conversations"][0]["value"].split("\n") == [
        "Current study:", "<image>", "Prior study:", "<image>",
        "Prior report: Findings: The lungs of study 50000003 are clear. Impression: Normal chest 50000003.",
        "Describe the findings of this chest X-ray study.",
    ]  # fmt: skip
    # Study 1 has no frontal image, so nothing earlier can be shown with 2.
    assert by_study[50000002]["conversations"][0]["value"].startswith("<image>\nDescribe")


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"report": None}, [], "no report file"),
        ({"report": b"\n FINDINGS: caf\xe9\n"}, [], "report is empty or not UTF-8 text"),
        ({"report": b"\n FINDINGS: a\0b\n"}, [], "report is empty or not UTF-8 text"),
        ({"report": b" \n"}, [], "report is empty or not UTF-8 text"),
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
    assert read_dropped(tmp_path / "out") == {"50000002": reason}
    stats = read_stats(tmp_path / "out")
    assert stats["dropped"] == {reason: 1}
    assert stats["studies"] == sum(stats["records"].values()) + sum(stats["dropped"].values()) == 2


def test_missing_and_empty_image_files_are_counted_and_the_others_used(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001, views="PA,AP").study(10000001, 50000002)
    del tree.images["p10/p10000001/s50000001/d50000001-0.jpg"]
    tree.images["p10/p10000001/s50000002/d50000002-0.jpg"] = b""
    records = convert(tree.write())["train"]
    assert [record["dicom_id"] for record in records] == [["d50000001-1"]]
    assert read_dropped(tmp_path / "out") == {"50000002": "no usable image file"}
    counts = read_stats(tmp_path / "out")["counts"]
    assert (counts["missing image files"], counts["image files of 0 bytes"]) == (1, 1)
    assert len(convert(tree.root, "--no_file_check")["train"]) == 2


def test_a_study_in_two_splits_is_dropped(tree: Tree, convert, tmp_path: Path):
    tree.study(10000001, 50000001, views="PA,AP").study(10000001, 50000002)
    tree.split_rows[1] = tree.split_rows[1].replace("train", "test")
    convert(tree.write())
    assert read_dropped(tmp_path / "out") == {"50000001": "images in more than one split"}


def _patient(reports: dict[int, bytes], images: list[ImageRow], **labels: dict[str, float]) -> Patient:
    return Patient(images, PatientReports(10000001, reports), {int(name[1:]): own for name, own in labels.items()})


def test_patients_are_converted_without_looking_at_files_where_that_is_not_asked_for():
    images = [ImageRow(1, "a", "train", "AP", (21800101, 1.0)), ImageRow(2, "b", "train", "PA", None)]
    patient = _patient({1: b"x\n FINDINGS: clear\n", 3: b"x"}, images, s1={"Edema": -1.0})
    options = MimicOptions("nowhere", "prefix", check_files=False)
    result = convert_patients(([patient], options))
    ((split, encoded),) = result.records
    record = json.loads(encoded)
    assert (split, record["labels"]) == ("train", {"Edema": -1.0})
    assert record["image"] == ["prefix/p10/p10000001/s1/a.jpg"]
    assert (result.studies, result.dropped) == (2, [(10000001, 2, "no report file")])
    assert result.counts["reports without a study"] == 1
    assert result.counts["studies with a prior study"] == 0


@pytest.mark.parametrize(
    ("prior", "line"),
    [("none", []), ("report", ["Prior report: N/A"]), ("image", []), ("both", ["Prior report: N/A"])],
)
def test_a_missing_prior_report_follows_the_policy_for_missing_context(prior: str, line: list[str]):
    patient = _patient({1: b"x\n FINDINGS: clear\n"}, [ImageRow(1, "a", "train", "AP", None)])
    report = ReportOptions(context=(), missing_context="na", prompt="Go.")
    options = MimicOptions("nowhere", "prefix", report, prior=prior, check_files=False)
    ((_, encoded),) = convert_patients(([patient], options)).records
    assert json.loads(encoded)["conversations"][0]["value"].split("\n") == ["<image>", *line, "Go."]

"""Tests of the conversion of IU X-Ray (Open-i) as a whole."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.openi.prepare import SplitShares, split_patients
from qwenvl.tools.prepare_openi import main
from tests.medical.openi.openi_files import IMAGES, add_report, report_xml


def _convert(root: Path, *options: str, reports: str = "reports", images: str = "png") -> dict[str, Any]:
    out = root / "out"
    main(["--reports", str(root / reports), "--images", str(root / images), "--out", str(out), "--overwrite", *options])
    return {path.stem.removeprefix("openi_"): json.loads(path.read_text()) for path in out.glob("*.json")}


def _all(out: dict[str, Any]) -> dict[int, str]:
    return {record["subject_id"]: split for split in ("train", "valid", "test") for record in out[split]}


def test_a_report_becomes_a_record_with_its_images(openi: Path):
    out = _convert(openi, "--valid_percent", "0", "--test_percent", "0", "--context", "indication", "comparison")
    assert out["train"][0] == {
        "id": "CXR1",
        "subject_id": 1,
        "study_id": "CXR1",
        "dicom_id": ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
        "view": ["", ""],
        "image": [str(openi / "png" / f"CXR1_{image}.png") for image in IMAGES],
        "conversations": [
            {
                "from": "human",
                "value": "<image>\n<image>\nIndication: Pain.\nComparison: XXXX.\n"
                "Describe the findings of this chest X-ray study.",
            },
            {"from": "gpt", "value": "Clear lungs."},
        ],
        "split": "train",
    }
    assert [record["subject_id"] for record in out["train"]] == list(range(1, 11))


def test_the_split_is_of_patients_seeded_and_the_same_whatever_is_dropped(openi: Path):
    first = _all(_convert(openi))
    assert sorted(first.values()) == ["test"] * 2 + ["train"] * 7 + ["valid"]
    assert _all(_convert(openi)) == first
    assert any(_all(_convert(openi, "--seed", str(seed))) != first for seed in (1, 2, 3))
    add_report(openi, 3, report_xml(3, FINDINGS=None))
    assert _all(_convert(openi)) == {subject: split for subject, split in first.items() if subject != 3}


def test_archives_give_the_same_as_folders_and_images_are_unpacked_once(openi: Path):
    for name, source in (("NLMCXR_reports.tgz", "reports"), ("NLMCXR_png.tgz", "png")):
        with tarfile.open(openi / name, "w:gz") as archive:
            archive.add(openi / source, arcname=".")
    expected = _convert(openi)
    packed = _convert(openi, reports="NLMCXR_reports.tgz", images="NLMCXR_png.tgz")
    images = openi / "out" / "films"
    assert packed["stats"] == expected["stats"]
    assert packed["train"][0]["image"][0] == str(images / Path(expected["train"][0]["image"][0]).name)
    times = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert len(times) == 20
    _convert(openi, reports="NLMCXR_reports.tgz", images="NLMCXR_png.tgz")
    assert {path.name: path.stat().st_mtime_ns for path in images.iterdir()} == times


def test_projections_give_the_views_and_put_the_frontal_image_first(openi: Path):
    rows = ["uid,filename,projection", "1,1_IM-0001-3001.dcm.png,Lateral", "1,1_IM-0001-4001.dcm.png,Frontal"]
    (openi / "indiana_projections.csv").write_text("\n".join(rows) + "\n")
    options = ["--projections", str(openi / "indiana_projections.csv"), "--valid_percent", "0", "--test_percent", "0"]
    study = _convert(openi, *options)["train"][0]
    assert (study["view"], study["dicom_id"][0]) == (["Frontal", "Lateral"], "CXR1_1_IM-0001-4001")
    frontal = _convert(openi, *options, "--views", "frontal")
    assert [record["view"] for record in frontal["train"]] == [["Frontal"]]
    assert frontal["stats"]["dropped"] == {"no frontal image": 9}
    assert len(_convert(openi, *options, "--views", "image")["train"]) == 20


@pytest.mark.parametrize(
    ("report", "options", "reason"),
    [
        (report_xml(11, FINDINGS=None), [], "no findings section"),
        (report_xml(11, FINDINGS="  "), [], "no findings section"),
        (report_xml(11)[:-9], [], "report is not well-formed XML"),
        (b"", [], "report is not well-formed XML"),
        (report_xml(11, FINDINGS="a\0b"), [], "report is not well-formed XML"),
        (report_xml(11).replace(b"utf-8", b"no-such"), [], "report is not well-formed XML"),
        (report_xml(11, images=()), [], "no usable image file"),
        (report_xml(11, images=("9_IM-9",)), [], "no usable image file"),
        (report_xml(11, uid="CXR1"), [], "a second report with the same uId"),
        (report_xml(11, FINDINGS="On XXXX."), ["--deid", "study"], "de-identified text in the target"),
    ],
)
def test_each_dropped_report_is_counted_under_its_reason(openi: Path, report: bytes, options: list[str], reason: str):
    add_report(openi, 11, report)
    out = _convert(openi, *options)
    assert out["stats"]["dropped"] == {reason: 1}
    assert len(_all(out)) == 10
    assert (openi / "out" / "openi_dropped.csv").read_text() == f"report,reason\n11.xml,{reason}\n"


def test_odd_images_are_counted(openi: Path):
    (openi / "png" / "CXR1_1_IM-0001-3001.png").write_bytes(b"")
    (openi / "png" / "CXR2_1_IM-0001-3001.png").unlink()
    (openi / "png" / "CXR99_1_IM-0001-3001.png").write_bytes(b"png")
    counts = _convert(openi)["stats"]["counts"]
    assert counts == {"image files of 0 bytes": 1, "missing image files": 1, "images without a report": 1}


def test_options_without_a_meaning_for_these_files_are_refused_before_anything_is_written(openi: Path):
    for options, message in [
        (["--views", "frontal"], "does not include which images are frontal"),
        (["--valid_percent", "60", "--test_percent", "40"], "leave nothing to train on"),
        (["--valid_percent", "-1"], "leave nothing to train on"),
    ]:
        with pytest.raises(UserError, match=message):
            _convert(openi, *options)
    assert not (openi / "out").exists()


@pytest.mark.parametrize("option", ["--reports", "--images", "--projections"])
def test_an_input_in_the_output_folder_is_never_overwritten(openi: Path, option: str):
    (openi / "out").mkdir()
    (openi / "out" / "stats.json").write_text("uid,filename,projection")
    with pytest.raises(UserError, match="stats.json is what this command reads"):
        _convert(openi, option, str(openi / "out" / "stats.json"))
    assert (openi / "out" / "stats.json").read_text() == "uid,filename,projection"


def test_shares_are_rounded_and_cover_all_patients():
    splits = split_patients(set(range(40)), SplitShares(10, 20, seed=3))
    assert sorted(splits) == list(range(40))
    assert [list(splits.values()).count(name) for name in ("train", "validate", "test")] == [28, 4, 8]
    assert set(split_patients({1, 2}, SplitShares(0, 0)).values()) == {"train"}

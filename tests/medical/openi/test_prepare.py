"""Tests of the IU X-Ray (Open-i) command on synthetic reports and images."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.openi.files import unpack_images
from qwenvl.tools.prepare_openi import main

SECTIONS = {
    "COMPARISON": "XXXX.",
    "INDICATION": "Pain.",
    "FINDINGS": "Clear lungs.",
    "IMPRESSION": "Normal XXXX chest.",
}
IMAGES = ("1_IM-0001-3001", "1_IM-0001-4001")


def _report(number: int, images: tuple[str, ...] = IMAGES, uid: str | None = None, **changes: str | None) -> bytes:
    sections = {name: text for name, text in {**SECTIONS, **changes}.items() if text is not None}
    texts = "".join(f'<AbstractText Label="{name}">{text}</AbstractText>' for name, text in sections.items())
    images = "".join(
        f'<parentImage id="CXR{number}_{image}"><caption>Chest</caption></parentImage>' for image in images
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="{uid or f"CXR{number}"}"/>'
        f"<MedlineCitation><Article><Abstract>{texts}</Abstract></Article></MedlineCitation>{images}</eCitation>"
    ).encode()


@pytest.fixture
def openi(tmp_path: Path) -> Path:
    """Return a folder with ten reports of two images each, unpacked as published."""
    for number in range(1, 11):
        _add(tmp_path, number, _report(number))
    return tmp_path


def _add(root: Path, number: int, report: bytes, images: tuple[str, ...] = IMAGES) -> None:
    (root / "reports" / "ecgen-radiology").mkdir(parents=True, exist_ok=True)
    (root / "reports" / "ecgen-radiology" / f"{number}.xml").write_bytes(report)
    (root / "png").mkdir(exist_ok=True)
    for image in images:
        (root / "png" / f"CXR{number}_{image}.png").write_bytes(b"png")


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
    _add(openi, 3, _report(3, FINDINGS=None))
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


@pytest.mark.parametrize("packing", ["w:gz", "w", "w:bz2", "w:xz"])
def test_an_archive_that_is_cut_anywhere_is_one_line(tmp_path: Path, packing: str):
    with tarfile.open(tmp_path / "whole.tgz", packing) as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"CXR{number}.png")
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(range(70)) * 10))
    data = (tmp_path / "whole.tgz").read_bytes()
    unpack_images(tmp_path / "whole.tgz", tmp_path / "whole")
    assert len(list((tmp_path / "whole").iterdir())) == 3
    # The zeros at the end of a plain tar are its padding, without which it is whole.
    end = len(data.rstrip(b"\0")) + 300 if packing == "w" else len(data)
    for length in {*range(0, end, 1 if packing != "w" else 100), end - 1}:
        (tmp_path / "cut.tgz").write_bytes(data[:length])
        with pytest.raises(
            UserError, match="cut.tgz: (not a complete tar archive .*download it again|the file or folder is empty)"
        ) as error:
            unpack_images(tmp_path / "cut.tgz", tmp_path / "films")
        assert "\n" not in str(error.value)
        images = list((tmp_path / "films").iterdir()) if (tmp_path / "films").exists() else []
        assert all(image.suffix == ".png" and image.stat().st_size == 700 for image in images)


def test_a_pipe_among_the_downloads_is_refused(openi: Path):
    os.mkfifo(openi / "pipe.tgz")
    for wrong in ({"reports": "pipe.tgz"}, {"images": "pipe.tgz"}):
        with pytest.raises(UserError, match="pipe.tgz: a named pipe"):
            _convert(openi, **wrong)
    os.mkfifo(openi / "reports" / "pipe.xml")
    with pytest.raises(UserError, match="pipe.xml: a named pipe"):
        _convert(openi)


def test_a_member_that_points_outside_is_unpacked_inside(openi: Path):
    with tarfile.open(openi / "evil.tgz", "w:gz") as archive:
        for name in ("../../outside.png", "CXR1_1_IM-0001-3001.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"png"))
    _convert(openi, "--valid_percent", "0", "--test_percent", "0", images="evil.tgz")
    assert (openi / "out" / "films" / "outside.png").exists()
    assert not (openi.parent / "outside.png").exists() and not (openi / "outside.png").exists()


def test_projections_tell_the_views_and_put_the_frontal_image_first(openi: Path):
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
        (_report(11, FINDINGS=None), [], "no findings section"),
        (_report(11, FINDINGS="  "), [], "no findings section"),
        (_report(11)[:-9], [], "report is not well-formed XML"),
        (b"", [], "report is not well-formed XML"),
        (_report(11, FINDINGS="a\0b"), [], "report is not well-formed XML"),
        (_report(11).replace(b"utf-8", b"no-such"), [], "report is not well-formed XML"),
        (_report(11, images=()), [], "no usable image file"),
        (_report(11, images=("9_IM-9",)), [], "no usable image file"),
        (_report(11, uid="CXR1"), [], "a second report with the same uId"),
        (_report(11, FINDINGS="On XXXX."), ["--deid", "study"], "de-identified text in the target"),
    ],
)
def test_each_dropped_report_is_counted_under_its_reason(openi: Path, report: bytes, options: list[str], reason: str):
    _add(openi, 11, report)
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


def test_wrong_input_is_the_users_error(openi: Path):
    (openi / "empty").mkdir()
    (openi / "bad.tgz").write_bytes(b"no tar")
    (openi / "bad.csv").write_text("uid,file\n")
    for options, paths, message in [
        ([], {"reports": "none"}, "no such file or folder"),
        ([], {"reports": "empty"}, "no .xml report in it"),
        ([], {"reports": "bad.tgz"}, "not a complete tar archive"),
        ([], {"images": "empty"}, "no .png image in it"),
        ([], {"images": "bad.tgz"}, "not a complete tar archive"),
        (["--views", "frontal"], {}, "does not include which images are frontal"),
        (["--valid_percent", "60", "--test_percent", "40"], {}, "leave nothing to train on"),
        (["--projections", str(openi / "bad.csv")], {}, "no column filename, projection, found uid, file"),
        (["--projections", str(openi / "none.csv")], {}, "no such table"),
    ]:
        with pytest.raises(UserError, match=message):
            _convert(openi, *options, **paths)
    (openi / "png" / "again").mkdir()
    (openi / "png" / "again" / "CXR1_1_IM-0001-3001.png").write_bytes(b"png")
    with pytest.raises(UserError, match="image CXR1_1_IM-0001-3001 is there twice"):
        _convert(openi)


@pytest.mark.parametrize("option", ["--reports", "--images", "--projections"])
def test_an_input_in_the_output_folder_is_never_written_over(openi: Path, option: str):
    (openi / "out").mkdir()
    (openi / "out" / "stats.json").write_text("uid,filename,projection")
    with pytest.raises(UserError, match="stats.json is what this command reads"):
        _convert(openi, option, str(openi / "out" / "stats.json"))
    assert (openi / "out" / "stats.json").read_text() == "uid,filename,projection"

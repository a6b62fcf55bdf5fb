"""Tests of the conversion of LLaVA-Rad annotations; the rows are synthetic ones in the published format."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwenvl.errors import UserError
from qwenvl.tools.prepare_mimic_cxr import main
from tests.medical.mimic.mimic_tree import Tree

TEST_NAME = "chat_test_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"


def _row(image: str = "mimic/p10/p10000001/s50000001/d50000001-0.jpg", **changes: Any) -> dict[str, Any]:
    return {
        "id": "x1",
        "image": image,
        "generate_method": "rule-based",
        "reason": "Cough\nand fever.",
        "view": "PA",
        "conversations": [
            {"from": "human", "value": "<image>\nProvide a description."},
            {"from": "gpt", "value": "Clear lungs,\n no effusion."},
        ],
    } | changes


def _convert(tmp_path: Path, rows: list[Any], *options: str, name: str = TEST_NAME) -> dict[str, Any]:
    root = Tree(tmp_path / "mimic").study(10000001, 50000001).write()
    (tmp_path / name).write_text(json.dumps(rows))
    main(["--jpg_root", str(root), "--llava_rad", str(tmp_path / name), "--out", str(tmp_path / "out"), "--overwrite"]
         + list(options))  # fmt: skip
    out = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    return out


def test_a_row_becomes_a_record_with_its_reason_as_the_indication(tmp_path: Path):
    assert _convert(tmp_path, [_row()])["mimic_test"] == [
        {
            "id": "x1",
            "view": ["PA"],
            "split": "test",
            "subject_id": 10000001,
            "study_id": 50000001,
            "dicom_id": ["d50000001-0"],
            "image": [str(tmp_path / "mimic/files/p10/p10000001/s50000001/d50000001-0.jpg")],
            "conversations": [
                {
                    "from": "human",
                    "value": "<image>\nIndication: Cough and fever.\nDescribe the findings of this chest X-ray study.",
                },
                {"from": "gpt", "value": "Clear lungs, no effusion."},
            ],
        }
    ]


@pytest.mark.parametrize(("name", "split"), [("train", "mimic_train"), ("dev", "mimic_valid"), ("test", "mimic_test")])
def test_the_split_is_that_of_the_published_file_name(tmp_path: Path, name: str, split: str):
    assert len(_convert(tmp_path, [_row()], name=TEST_NAME.replace("test", name))[split]) == 1
    assert len(_convert(tmp_path, [_row(split=name)], name="rows.json")[split]) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_row(generate_method="gpt4"), "test row not extracted by rules"),
        (_row(view="LATERAL"), "no frontal image"),
        (_row(view=None), "no frontal image"),
        (_row(conversations=[{}, {"from": "gpt", "value": None}]), "no findings section"),
        (_row(image="mimic/p10/p10000001/s50000001/none.jpg"), "no usable image file"),
        (_row(image="mimic/../../secret.jpg"), "image path leads out of --jpg_root (see --allow_outside)"),
        (_row(image="/etc/passwd"), "image path leads out of --jpg_root (see --allow_outside)"),
        (_row(image="mimic/link/x.jpg"), "image path leads out of --jpg_root (see --allow_outside)"),
        (_row(image="mimic/a\0b.jpg"), "no usable image file"),
    ],
)
def test_rows_that_cannot_be_used_are_counted_under_their_reason(tmp_path: Path, row: dict, reason: str):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").write_bytes(b"jpeg")
    (tmp_path / "mimic" / "files").mkdir(parents=True)
    (tmp_path / "mimic" / "files" / "link").symlink_to(tmp_path / "outside")
    out = _convert(tmp_path, [_row(), row])
    assert len(out["mimic_test"]) == 1
    assert out["stats"]["dropped"] == {reason: 1}


def test_images_outside_are_taken_when_allowed(tmp_path: Path):
    (tmp_path / "outside.jpg").write_bytes(b"jpeg")
    row = _row(image=str(tmp_path / "outside.jpg"))
    assert _convert(tmp_path, [row], "--allow_outside")["mimic_test"][0]["image"] == [str(tmp_path / "outside.jpg")]


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([_row(), {"image": "x"}], TEST_NAME, "row 1: not a LLaVA-Rad annotation: expected image and conversations"),
        ([_row(image=["a.jpg"])], TEST_NAME, "row 0: its image is not one path"),
        ([_row(split=["test"])], TEST_NAME, "row 0: its split is unknown"),
        ([7], TEST_NAME, "row 0: not a LLaVA-Rad annotation:.* found int"),
        ([_row(conversations=[])], TEST_NAME, "row 0: conversations is not a list of a question and an answer"),
        ([_row()], "mine.json", "row 0: its split is unknown"),
        ({"a": 1}, TEST_NAME, "row 0: .* LLaVA-Rad annotation"),
    ],
)
def test_a_file_that_is_something_else_is_the_users_error(tmp_path: Path, rows: Any, name: str, message: str):
    with pytest.raises(UserError, match=message):
        _convert(tmp_path, rows, name=name)
    assert list((tmp_path / "out").iterdir()) == []

"""Tests of reading and joining the split, metadata and label tables."""

import gzip
import os
from pathlib import Path

import pytest

from qwenvl.errors import UserError
from qwenvl.medical.mimic.synthetic import LABELS, SyntheticOptions, build_synthetic_mimic
from qwenvl.medical.mimic.tables import ImageRow, MimicTables, find_table, read_tables
from tests.medical.mimic.mimic_tree import Tree


def _read(root: Path, labels: str | None = None) -> MimicTables:
    return read_tables(
        find_table(root, "split"), find_table(root, "metadata"), find_table(root, labels) if labels else None
    )


def test_images_are_grouped_by_patient_and_sorted_by_study(tree: Tree):
    tree.study(10000002, 50000003, views="LATERAL", split="test", taken=",")
    tree.study(10000001, 50000002).study(10000001, 50000001, views="-, pa")
    assert _read(tree.write()).patients == {
        10000001: [
            ImageRow(50000001, "d50000001-0", "train", "", (21800101, 80000.5)),
            ImageRow(50000001, "d50000001-1", "train", "PA", (21800101, 80000.5)),
            ImageRow(50000002, "d50000002-0", "train", "PA", (21800101, 80000.5)),
        ],
        10000002: [ImageRow(50000003, "d50000003-0", "test", "LATERAL", None)],
    }


@pytest.mark.parametrize(("code", "view"), [("antero-posterior", "AP"), ("Left Lateral ", "LL"), ("oblique", "")])
def test_a_blank_view_is_taken_from_the_view_code(tree: Tree, code: str, view: str):
    tree.study(10000001, 50000001, views="-")
    tree.metadata_rows[0] += code
    assert [image.view for image in _read(tree.write()).patients[10000001]] == [view]


def test_repeated_rows_and_images_in_one_table_are_counted(tree: Tree):
    tree.study(10000001, 50000001)
    tree.split_rows += [tree.split_rows[0], "other,50000001,10000001,train"]
    tree.metadata_rows += [tree.metadata_rows[0], tree.metadata_rows[0].replace("d50000001-0", "unsplit")]
    tables = _read(tree.write())
    assert [image.dicom_id for image in tables.patients[10000001]] == ["d50000001-0"]
    assert tables.counts == {
        "images in the metadata table": 3,
        "repeated rows in the split table": 1,
        "repeated rows in the metadata table": 1,
        "images only in the split table": 1,
        "images without a split": 1,
    }


def test_compressed_and_plain_tables_give_the_same_and_the_plain_one_wins(tmp_path: Path):
    options = SyntheticOptions(studies=12, image_size=16, gzip_tables=False)
    root = build_synthetic_mimic(tmp_path / "mimic", options)
    plain = _read(root, "chexpert")
    for path in list(root.glob("*.csv")):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        assert find_table(root, path.stem.rpartition("-")[2]) == path
        path.unlink()
    assert _read(root, "chexpert") == plain
    assert plain.label_names == LABELS
    study = next(iter(plain.labels))
    assert plain.study_labels(study).keys() == {
        "Cardiomegaly", "Lung Opacity", "Pleural Effusion", "Pneumothorax", "Support Devices"
    }  # fmt: skip
    assert plain.study_labels(0) == {}


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
        ("metadata", "21800101", "1" * 5000, "line 2: StudyDate '1+' is not a whole number"),
        ("metadata", "80000.5", "8h", "line 2: StudyTime '8h' is not a number"),
    ],
)
def test_an_invalid_cell_is_reported_with_file_and_line(tree: Tree, table: str, old: str, new: str, message: str):
    tree.study(10000001, 50000001)
    rows = tree.split_rows if table == "split" else tree.metadata_rows
    rows[0] = rows[0].replace(old, new)
    with pytest.raises(UserError, match=message):
        _read(tree.write())


def test_an_invalid_label_is_reported_with_file_and_line(tree: Tree):
    root = tree.study(10000001, 50000001).write()
    (root / "mimic-cxr-2.0.0-negbio.csv").write_text("subject_id,study_id,Edema\n10000001,50000001,yes\n")
    with pytest.raises(UserError, match="negbio.csv line 2: Edema 'yes' is not a number"):
        _read(root, "negbio")


def test_an_image_id_with_two_different_rows_is_an_error(tree: Tree):
    tree.study(10000001, 50000001)
    tree.split_rows.append(tree.split_rows[0].replace("train", "test"))
    with pytest.raises(UserError, match="line 3: dicom_id d50000001-0 is there twice"):
        _read(tree.write())


def test_missing_tables_and_columns_are_reported_with_what_was_found(tree: Tree):
    root = tree.study(10000001, 50000001).write()
    split = root / "mimic-cxr-2.0.0-split.csv"
    split.write_text(split.read_text().replace(",split", ",part"))
    with pytest.raises(UserError, match="no column split; found dicom_id, study_id, subject_id, part"):
        _read(root)
    split.rename(root / "other.csv")
    with pytest.raises(UserError, match="no table mimic-cxr-2.0.0-split.csv or .csv.gz, found mimic-cxr-2.0.0-meta"):
        _read(root)
    split.write_bytes(b"")
    with pytest.raises(UserError, match="no column .*; found an empty file"):
        _read(root)
    split.write_bytes(b"dicom_id,study_id,subject_id,split\n\xe9,1,1,train\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        _read(root)
    (root / "mimic-cxr-2.1.0-split.csv").touch()
    with pytest.raises(UserError, match="2 tables mimic-cxr-2.0.0-split.csv .* name the file with --split_csv"):
        _read(root)


def test_a_truncated_table_and_a_pipe_are_the_users_error(tree: Tree):
    root = tree.study(10000001, 50000001).write()
    table = root / "mimic-cxr-2.0.0-split.csv"
    table.with_name(table.name + ".gz").write_bytes(gzip.compress(table.read_bytes())[:-12])
    table.unlink()
    with pytest.raises(UserError, match="split.csv.gz: cannot read it"):
        _read(root)
    os.mkfifo(table)
    with pytest.raises(UserError, match="split.csv: a named pipe"):
        _read(root)

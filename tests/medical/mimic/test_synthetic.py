"""Tests of the synthetic MIMIC-CXR."""

import gzip
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.errors import UserError
from qwenvl.medical.mimic.synthetic import SyntheticOptions, build_synthetic_mimic, draw_xray
from qwenvl.medical.mimic.tables import LABEL_TABLES, find_table, read_tables

SMALL = SyntheticOptions(studies=20, image_size=16)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_options_give_the_same_bytes_and_another_seed_others(tmp_path: Path):
    first, again = (_contents(build_synthetic_mimic(tmp_path / name, SMALL)) for name in "ab")
    assert first == again
    assert _contents(build_synthetic_mimic(tmp_path / "c", SyntheticOptions(20, seed=1, image_size=16))) != first


def test_tables_images_and_reports_belong_together(tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SMALL)
    tables = read_tables(find_table(root, "split"), find_table(root, "metadata"), find_table(root, "negbio"))
    studies = {image.study_id for images in tables.patients.values() for image in images}
    assert len(studies) == 20 and studies == tables.labels.keys()
    assert {image.split for images in tables.patients.values() for image in images} == {"train", "validate", "test"}
    for subject_id, images in tables.patients.items():
        for image in images:
            folder = root / "files" / f"p{str(subject_id)[:2]}" / f"p{subject_id}"
            assert (folder / f"s{image.study_id}.txt").read_text().count("FINAL REPORT") == 1
            assert Image.open(folder / f"s{image.study_id}" / f"{image.dicom_id}.jpg").size == (16, 16)


def test_no_two_images_are_the_same_file(tmp_path: Path):
    root = build_synthetic_mimic(tmp_path / "mimic", SyntheticOptions(studies=60, image_size=8))
    images = [path.read_bytes() for path in root.rglob("*.jpg")]
    assert len(images) > 60 and len(set(images)) == len(images)


def test_reports_are_written_as_a_zip_and_tables_plainly_if_asked_for(tmp_path: Path):
    options = SyntheticOptions(studies=5, image_size=8, zip_reports=True, gzip_tables=False)
    root = build_synthetic_mimic(tmp_path / "mimic", options)
    assert not list(root.rglob("*.txt"))
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip") as archive:
        assert len(archive.namelist()) == 5
    packed = build_synthetic_mimic(tmp_path / "packed", SyntheticOptions(studies=5, image_size=8, zip_reports=True))
    for table in ("split", "metadata", *LABEL_TABLES):
        name = f"mimic-cxr-2.0.0-{table}.csv"
        assert gzip.decompress((packed / f"{name}.gz").read_bytes()) == (root / name).read_bytes()


def test_a_folder_with_files_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        build_synthetic_mimic(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for path in (tmp_path / "mine.txt", tmp_path / "mine.txt" / "below"):
        with pytest.raises(UserError, match="cannot make the folder .*; give another --out"):
            build_synthetic_mimic(path)


def test_images_that_would_fill_the_memory_are_refused():
    with pytest.raises(UserError, match="--film_size 100000000: give at most 8192 pixels"):
        SyntheticOptions(image_size=100_000_000)


def test_an_enlarged_heart_is_brighter_on_the_left():
    normal, enlarged = (np.asarray(draw_xray(random.Random(0), 128, each), dtype=float) for each in (False, True))
    difference = enlarged - normal
    assert difference[64:100, 84:104].mean() > 50 and abs(difference[:, :50]).max() < 5

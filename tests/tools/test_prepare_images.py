"""Tests of the command line of the conversion of images."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.errors import UserError
from qwenvl.tools.prepare_images import main
from tests.medical.deep_images import write_originals


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    return write_originals(tmp_path / "in")


@pytest.mark.parametrize(
    "options",
    [
        ["--window", "1", "2", "--range", "minmax"],
        ["--percentiles", "1", "2"],
        ["--bits", "12"],
        ["--fit", "longest"],
        ["--quality", "90"],
        ["--quality", "101", "--format", "jpg"],
        ["--frame", "-1"],
        ["--size", "0"],
        ["--range", "percentile", "--percentiles", "90", "10"],
    ],
)
def test_an_option_that_has_no_effect_or_is_out_of_range_is_refused(originals: Path, options: list[str]):
    with pytest.raises(UserError) as error:
        main(["--input", str(originals), "--out", str(originals.parent / "out"), *options])
    assert "\n" not in str(error.value)
    assert not (originals.parent / "out").exists()


def test_folders_that_overlap_or_are_missing_are_the_users_error(originals: Path, tmp_path: Path):
    for out in (originals, originals / "deep", originals.parent):
        with pytest.raises(UserError, match="overlap"):
            main(["--input", str(originals), "--out", str(out)])
    with pytest.raises(UserError, match="no such folder"):
        main(["--input", str(tmp_path / "none"), "--out", str(tmp_path / "out")])


def test_every_flag_reaches_the_conversion_and_the_summary_counts_files(originals: Path, tmp_path: Path, capsys):
    (originals / "empty.png").touch()
    flags = ["--range", "window", "--window", "5", "9", "--size", "20", "--fit", "longest", "--format", "jpg"]
    flags += ["--quality", "30", "--frame", "0", "--max_image_megapixels", "3", "--workers", "1"]
    assert main(["--input", str(originals), "--out", str(tmp_path / "out"), *flags]) == 1
    settings = json.loads((tmp_path / "out" / "prepare_images.json").read_text())
    assert settings["window"] == [5.0, 9.0]
    assert {name: settings[name] for name in ("kind", "size", "fit", "format", "quality", "frame")} == {
        "kind": "window", "size": 20, "fit": "longest", "format": "jpg", "quality": 30, "frame": 0
    }  # fmt: skip
    assert Image.open(tmp_path / "out" / "gray16.jpg").size == (13, 20)
    rows = dict(line.strip().rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    names = ("converted", "already converted", "not images", "failed (see failed.jsonl)")
    assert [rows[name] for name in names] == ["7", "0", "1", "1"]
    (originals / "empty.png").unlink()
    assert main(["--input", str(originals), "--out", str(tmp_path / "out"), *flags]) == 0

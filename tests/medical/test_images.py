"""Tests of the conversion of a folder of images: names, failures, links, and runs after an interrupted one."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwenvl.data.media.gray import GrayRange
from qwenvl.errors import UserError
from qwenvl.medical.convert_image import ImageOptions
from qwenvl.medical.images import Result, convert_folder
from tests.data.dicom_files import make_dicom, rle_dicom
from tests.medical.deep_images import LEVELS, write_originals


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    return write_originals(tmp_path / "in")


def _run(originals: Path, out: str = "out", *, workers: int = 1, **options: Any) -> tuple[Result, dict[str, str]]:
    """Return the result and the failures: reason by file name. `options` are those of images and of the folder."""
    folder, flags = originals.parent / out, {"overwrite": False, "allow_outside": False}
    flags |= {name: options.pop(name) for name in list(options) if name in flags}
    result = convert_folder(originals, folder, ImageOptions(**options), **flags, workers=workers)
    lines = (folder / "failed.jsonl").read_text().splitlines()
    return result, {Path(row["path"]).name: row["reason"] for row in map(json.loads, lines)}


def _converted(folder: Path) -> dict[str, Image.Image]:
    return {str(path.relative_to(folder)): Image.open(path) for path in sorted(folder.rglob("*.png"))}


def test_every_kind_of_image_becomes_an_8_bit_file_of_the_same_name(originals: Path):
    assert _run(originals)[1] == {}
    images = _converted(originals.parent / "out")
    assert {name: image.mode for name, image in images.items()} == {
        "color.png": "RGB",
        "deep/er/1.2.840.7.png": "L",
        "deep/er/gray.png": "L",
        "deep/gray16.png": "L",
        "deep/float.png": "L",
        "gray16.png": "L",
        "gray8.png": "L",
    }
    assert all(image.size == (40, 60) for image in images.values())
    gray = np.asarray(images["gray16.png"])
    assert (gray[0, 0], gray[-1, -1], len(np.unique(gray))) == (0, 255, 256)
    for other in ("deep/gray16.png", "deep/float.png", "deep/er/gray.png"):
        assert np.abs(np.asarray(images[other]).astype(int) - gray).max() <= 1


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "the image file is empty (0 bytes)"),
        ("gray16.tif", lambda path: Image.fromarray(LEVELS).save(path), "same name as that of"),
        ("out.png", lambda path: path.symlink_to("/etc/hostname"), "a link that leads out of --input"),
        ("panic.dcm", lambda path: rle_dicom(path, runs=33), "the pixel data cannot be decoded"),
    ],
)
def test_a_failure_is_listed_with_its_reason_and_the_rest_is_done(originals: Path, name: str, make, reason: str):
    make(originals / name)
    result, failed = _run(originals, workers=2 if name == "panic.dcm" else 1)
    assert list(failed) == [name] and reason in failed[name] and "\n" not in failed[name]
    assert (result.converted, result.failed, result.skipped) == (7, 1, 1)
    assert len(_converted(originals.parent / "out")) == 7
    assert not list((originals.parent / "out").rglob("*.partial"))


def test_links_are_followed_when_allowed_and_a_circle_of_links_ends(originals: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (40, 60)).save(tmp_path / "elsewhere" / "a.png")
    (originals / "linked").symlink_to(tmp_path / "elsewhere")
    (originals / "circle").symlink_to(originals)
    assert _run(originals)[1] == {"linked": "a link that leads out of --input (see --allow_outside)"}
    _, failed = _run(originals, "out2", allow_outside=True)
    assert failed == {}
    assert "linked/a.png" in _converted(tmp_path / "out2")


def _times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_a_second_run_does_only_what_is_missing_failed_or_changed(originals: Path, monkeypatch: pytest.MonkeyPatch):
    (originals / "late.png").write_bytes(b"")
    _run(originals)
    out = originals.parent / "out"
    before = _times(out)
    (out / "gray8.png").unlink()
    Image.new("L", (40, 60)).save(originals / "late.png")
    Image.fromarray(LEVELS[::-1].copy()).save(originals / "gray16.png")
    future = max(before.values()) + 10**9
    os.utime(originals / "gray16.png", ns=(future, future))
    assert _run(originals)[1] == {}
    after = _times(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"gray8.png", "late.png", "gray16.png"}


def test_a_run_that_is_stopped_leaves_whole_images_and_goes_on_later(originals: Path, monkeypatch):
    saved: list[str] = []
    save = Image.Image.save

    def stop_in_the_middle(image: Image.Image, path: Any, *args: Any, **options: Any) -> None:
        save(image, path, *args, **options)
        saved.append(str(path))
        if len(saved) == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:20])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        _run(originals)
    monkeypatch.undo()
    done = _times(originals.parent / "out")
    assert len(done) == 2
    assert _run(originals)[1] == {}
    images = _converted(originals.parent / "out")
    assert len(images) == 7 and all(image.load() for image in images.values())
    assert {name: _times(originals.parent / "out")[name] for name in done} == done


def test_images_of_other_settings_are_neither_kept_nor_lost_by_mistake(originals: Path):
    _run(originals)
    out = originals.parent / "out"
    before = _times(out)
    with pytest.raises(UserError, match="made with other settings .kind was window, is now minmax"):
        _run(originals, gray_range=GrayRange("minmax"))
    assert _times(out) == before
    assert _run(originals, gray_range=GrayRange("minmax"), overwrite=True)[1] == {}
    assert all(_times(out)[name] > time for name, time in before.items())
    foreign = originals.parent / "foreign"
    foreign.mkdir()
    (foreign / "gray16.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="files that this tool did not make"):
        _run(originals, "foreign")
    assert (foreign / "gray16.png").read_bytes() == b"mine"


def test_several_workers_give_the_same_files(originals: Path):
    _run(originals)
    assert _run(originals, "out2", workers=2)[1] == {}
    one, two = (
        {name: image.tobytes() for name, image in _converted(originals.parent / out).items()} for out in ("out", "out2")
    )
    assert one == two


def test_originals_are_only_read(originals: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in originals.rglob("*") if path.is_file()}
    _run(originals, size=10)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in originals.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("length", [240, 251, 255])
def test_a_name_of_any_length_is_converted_or_listed(originals: Path, length: int):
    name = "n" * (length - 4) + ".png"
    Image.fromarray(LEVELS).save(originals / name)
    (originals / name).rename(originals / (name := name.removesuffix(".png") + ".bmp"))
    assert _run(originals)[1] == {}
    long_dicom = "1." * 127 + "2"
    make_dicom(LEVELS, 12).save_as(originals / long_dicom, enforce_file_format=True)
    _, failed = _run(originals)
    assert list(failed) == [long_dicom]
    assert failed[long_dicom] == "its name is too long for the disk of --out (259 bytes); shorten it"
    assert not list((originals.parent / "out").rglob("*.partial"))


def test_a_name_that_is_no_text_is_listed_when_it_fails(originals: Path):
    path = os.fsencode(originals) + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    _, failed = _run(originals)
    assert [os.fsencode(name) for name in failed] == [b"\xff\xfe.png"]


def test_pipes_and_devices_are_listed_and_do_not_stop_the_run(originals: Path):
    os.mkfifo(originals / "pipe.png")
    (originals / "zero.png").symlink_to("/dev/zero")
    _, failed = _run(originals, allow_outside=True)
    assert failed == {
        "pipe.png": "a named pipe (FIFO), expected one image file; correct the path",
        "zero.png": "a device, expected one image file; correct the path",
    }

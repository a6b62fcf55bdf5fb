"""Tests of the command that brings folders of deep and DICOM pictures to 8 bits."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwenvl.errors import UserError
from qwenvl.medical import convert_image
from qwenvl.tools.prepare_images import main
from tests.data.dicom_files import make_dicom, rle_dicom

LEVELS = (np.arange(60 * 40, dtype=np.uint16) * 1.7).astype(np.uint16).reshape(60, 40)


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Return a folder with one picture of each kind, all of them readable: 40 wide and 60 high."""
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    Image.fromarray(LEVELS).save(folder / "film16.png")
    Image.fromarray(LEVELS).save(folder / "deep" / "film16.tif")
    Image.fromarray((LEVELS / 4096).astype(np.float32)).save(folder / "deep" / "float.tiff")
    Image.fromarray((LEVELS // 16).astype(np.uint8)).save(folder / "film8.jpg", quality=95)
    Image.new("RGB", (40, 60), "red").save(folder / "colour.png")
    make_dicom(LEVELS, 12).save_as(folder / "deep" / "er" / "film.dcm", enforce_file_format=True)
    make_dicom(LEVELS, 12).save_as(folder / "deep" / "er" / "1.2.840.7", enforce_file_format=True)
    (folder / "notes.txt").write_text("no picture")
    return folder


def _run(originals: Path, *options: str, out: str = "out") -> tuple[int, dict[str, str]]:
    """Return the exit code and the failures: reason by file name."""
    folder = originals.parent / out
    code = main(["--input", str(originals), "--out", str(folder), "--workers", "1", *options])
    lines = (folder / "failed.jsonl").read_text().splitlines()
    return code, {Path(row["path"]).name: row["reason"] for row in map(json.loads, lines)}


def _pictures(folder: Path) -> dict[str, Image.Image]:
    return {str(path.relative_to(folder)): Image.open(path) for path in sorted(folder.rglob("*.png"))}


def test_every_kind_of_picture_becomes_an_8_bit_file_of_the_same_name(originals: Path):
    assert _run(originals) == (0, {})
    pictures = _pictures(originals.parent / "out")
    assert {name: picture.mode for name, picture in pictures.items()} == {
        "colour.png": "RGB",
        "deep/er/1.2.840.7.png": "L",
        "deep/er/film.png": "L",
        "deep/film16.png": "L",
        "deep/float.png": "L",
        "film16.png": "L",
        "film8.png": "L",
    }
    assert all(picture.size == (40, 60) for picture in pictures.values())
    film = np.asarray(pictures["film16.png"])
    assert (film[0, 0], film[-1, -1], len(np.unique(film))) == (0, 255, 256)
    for other in ("deep/film16.png", "deep/float.png", "deep/er/film.png"):
        assert np.abs(np.asarray(pictures[other]).astype(int) - film).max() <= 1


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--size", "20"], (20, 30)),
        (["--size", "20", "--fit", "shortest"], (20, 30)),
        (["--size", "30", "--fit", "longest"], (20, 30)),
        (["--size", "500"], (40, 60)),
    ],
)
def test_pictures_shrink_to_the_size_with_their_aspect_and_never_grow(originals: Path, options: list[str], size):
    _run(originals, *options)
    assert {picture.size for picture in _pictures(originals.parent / "out").values()} == {size}


@pytest.mark.parametrize(
    ("options", "white"),
    [
        (["--range", "minmax"], 255),
        (["--range", "bits"], 16),
        (["--range", "bits", "--bits", "12"], 254),
        (["--range", "percentile", "--percentiles", "0", "50"], 255),
        (["--range", "window", "--window", "4079", "4080"], 128),
    ],
)
def test_the_range_decides_the_gray_levels(originals: Path, options: list[str], white: int):
    _run(originals, *options)
    film = np.asarray(_pictures(originals.parent / "out")["film16.png"])
    assert abs(int(film[-1, -1]) - white) <= 1
    if "percentile" in options:
        assert (film == 255).mean() == pytest.approx(0.5, abs=0.01)


def test_jpeg_output_has_the_quality_asked_for(originals: Path):
    _run(originals, "--format", "jpg", "--quality", "30")
    _run(originals, "--format", "jpg", out="fine")
    coarse, fine = (originals.parent / out / "film16.jpg" for out in ("out", "fine"))
    assert Image.open(coarse).format == "JPEG" and coarse.stat().st_size < fine.stat().st_size


def test_a_photo_is_turned_upright(originals: Path):
    picture = Image.new("L", (40, 60))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(originals / "turned.jpg", exif=exif)
    _run(originals)
    assert _pictures(originals.parent / "out")["turned.png"].size == (60, 40)


def _truncated(path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _frames(path: Path) -> None:
    pages = [Image.fromarray(LEVELS), Image.fromarray(LEVELS[::-1].copy())]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def _bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))


def _no_pixels(path: Path) -> None:
    dataset = make_dicom(LEVELS, 12)
    del dataset.PixelData
    dataset.save_as(path, enforce_file_format=True)


def _huge_dicom(path: Path) -> None:
    make_dicom(LEVELS, 12, Rows=30_000, Columns=30_000).save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "the image file is empty (0 bytes)"),
        ("cut.jpg", _truncated, "truncated"),
        ("text.png", lambda path: path.write_text("no picture"), "not an image of a known format"),
        ("bomb.png", _bomb, "pixels"),
        ("frames.tif", _frames, "2 frames in one file; pick one with --frame 0 to 1"),
        ("none.dcm", _no_pixels, "a DICOM object without pixels"),
        ("huge.dcm", _huge_dicom, "30000 x 30000 pixels are more than the limit"),
        ("text.dcm", lambda path: path.write_text("no picture" * 50), "not a DICOM file: the mark DICM is missing"),
        ("cut.dcm", lambda path: path.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40), "DICOM"),
        ("film16.tif", lambda path: Image.fromarray(LEVELS).save(path), "same name as that of"),
        ("nowhere.png", lambda path: path.symlink_to("not there"), "a link to not there, which does not exist"),
        ("out.png", lambda path: path.symlink_to("/etc/hostname"), "a link that leads out of --input"),
    ],
)
def test_what_cannot_be_read_is_listed_with_its_reason_and_the_rest_is_done(originals: Path, name, make, reason):
    make(originals / name)
    code, failed = _run(originals)
    assert code == 1
    assert list(failed) == [name] and reason in failed[name] and "\n" not in failed[name]
    assert len(_pictures(originals.parent / "out")) == 7
    assert not list((originals.parent / "out").rglob("*.partial"))


def test_links_are_followed_when_allowed_and_a_circle_of_links_ends(originals: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("L", (40, 60)).save(tmp_path / "elsewhere" / "a.png")
    (originals / "linked").symlink_to(tmp_path / "elsewhere")
    (originals / "circle").symlink_to(originals)
    assert _run(originals)[1] == {"linked": "a link that leads out of --input (see --allow_outside)"}
    code, failed = _run(originals, "--allow_outside", out="out2")
    assert (code, failed) == (0, {})
    assert "linked/a.png" in _pictures(tmp_path / "out2")


def test_a_frame_is_taken_from_every_file_when_asked_for(originals: Path):
    for path in originals.rglob("*.*"):
        if path.is_file():
            path.unlink()
    _frames(originals / "frames.tif")
    make_dicom(np.stack([LEVELS, LEVELS[::-1]]), 12).save_as(originals / "frames.dcm", enforce_file_format=True)
    (originals / "frames.dcm").rename(originals / "more.dcm")
    assert _run(originals, "--frame", "1") == (0, {})
    shown = [np.asarray(picture) for picture in _pictures(originals.parent / "out").values()]
    assert len(shown) == 2 and all(picture[0, 0] > picture[-1, -1] for picture in shown)
    assert _run(originals, "--frame", "2", out="out2")[1].keys() == {"frames.tif", "more.dcm"}


def _times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_a_second_run_does_only_what_is_missing_failed_or_changed(originals: Path, monkeypatch: pytest.MonkeyPatch):
    (originals / "late.png").write_bytes(b"")
    _run(originals)
    out = originals.parent / "out"
    before = _times(out)
    (out / "film8.png").unlink()
    Image.new("L", (40, 60)).save(originals / "late.png")
    Image.fromarray(LEVELS[::-1].copy()).save(originals / "film16.png")
    future = max(before.values()) + 10**9
    os.utime(originals / "film16.png", ns=(future, future))
    assert _run(originals) == (0, {})
    after = _times(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"film8.png", "late.png", "film16.png"}


def test_a_run_that_is_stopped_leaves_whole_pictures_and_goes_on_later(originals: Path, monkeypatch):
    saved: list[str] = []
    save = Image.Image.save

    def stop_in_the_middle(picture: Image.Image, path: Any, *args: Any, **options: Any) -> None:
        save(picture, path, *args, **options)
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
    assert _run(originals) == (0, {})
    pictures = _pictures(originals.parent / "out")
    assert len(pictures) == 7 and all(picture.load() for picture in pictures.values())
    assert {name: _times(originals.parent / "out")[name] for name in done} == done


def test_pictures_of_other_settings_are_neither_kept_nor_lost_by_mistake(originals: Path):
    _run(originals)
    out = originals.parent / "out"
    before = _times(out)
    with pytest.raises(UserError, match="made with other settings .kind window then, minmax now"):
        _run(originals, "--range", "minmax")
    assert _times(out) == before
    assert _run(originals, "--range", "minmax", "--overwrite")[0] == 0
    assert all(_times(out)[name] > time for name, time in before.items())
    foreign = originals.parent / "foreign"
    foreign.mkdir()
    (foreign / "film16.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="files that this tool did not make"):
        _run(originals, out="foreign")
    assert (foreign / "film16.png").read_bytes() == b"mine"


def test_several_workers_give_the_same_files(originals: Path):
    _run(originals)
    assert _run(originals, "--workers", "2", out="out2") == (0, {})
    one, two = (
        {name: picture.tobytes() for name, picture in _pictures(originals.parent / out).items()}
        for out in ("out", "out2")
    )
    assert one == two


def test_originals_are_only_read(originals: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in originals.rglob("*") if path.is_file()}
    _run(originals, "--size", "10")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in originals.rglob("*") if p.is_file()} == before
    for out in (originals, originals / "deep", originals.parent):
        with pytest.raises(UserError, match="lie in one another"):
            main(["--input", str(originals), "--out", str(out)])


def test_a_full_disk_ends_the_run_and_is_not_blamed_on_the_pictures(originals: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_image.os, "replace", full)
    task = convert_image.ImageTask(
        str(originals / "film8.jpg"), str(originals.parent / "x" / "a.png"), convert_image.ImageOptions()
    )
    with pytest.raises(UserError, match="a.png: cannot write it .No space left on device"):
        convert_image.convert_image(task)
    assert list((originals.parent / "x").iterdir()) == []


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
def test_an_option_that_would_do_nothing_or_makes_no_sense_is_refused(originals: Path, options: list[str]):
    with pytest.raises(UserError):
        _run(originals, *options)
    assert not (originals.parent / "out").exists()


def test_a_missing_input_is_the_users_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        main(["--input", str(tmp_path / "none"), "--out", str(tmp_path / "out")])


def test_the_limit_of_pixels_can_be_moved_and_a_second_run_takes_what_is_now_allowed(originals: Path):
    Image.new("L", (1100, 1000)).save(originals / "large.png")
    code, failed = _run(originals, "--max_image_megapixels", "1")
    assert code == 1
    assert "1100 x 1000 pixels are more than the limit of 1048576" in failed["large.png"]
    assert "--max_image_megapixels" in failed["large.png"]
    assert _run(originals, "--max_image_megapixels", "2") == (0, {})
    assert _pictures(originals.parent / "out")["large.png"].size == (1100, 1000)


@pytest.mark.parametrize("length", [240, 251, 255])
def test_a_name_of_any_length_is_converted_or_listed(originals: Path, length: int):
    name = "n" * (length - 4) + ".png"
    Image.fromarray(LEVELS).save(originals / name)
    (originals / name).rename(originals / (name := name.removesuffix(".png") + ".bmp"))
    assert _run(originals) == (0, {})
    long_dicom = "1." * 127 + "2"
    make_dicom(LEVELS, 12).save_as(originals / long_dicom, enforce_file_format=True)
    code, failed = _run(originals)
    assert (code, list(failed)) == (1, [long_dicom])
    assert failed[long_dicom] == "its name is too long for the disk of --out (259 bytes); shorten it"
    assert not list((originals.parent / "out").rglob("*.partial"))


def test_a_name_that_is_no_text_is_listed_when_it_fails(originals: Path):
    path = os.fsencode(originals) + b"/\xff\xfe.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    code, failed = _run(originals)
    assert (code, [os.fsencode(name) for name in failed]) == (1, [b"\xff\xfe.png"])


def test_a_damaged_dicom_is_listed_by_a_worker_and_the_rest_is_done(originals: Path):
    rle_dicom(originals / "panic.dcm", runs=33)
    code, failed = _run(originals, "--workers", "2")
    assert code == 1
    assert list(failed) == ["panic.dcm"] and "the pixel data cannot be decoded" in failed["panic.dcm"]
    assert len(_pictures(originals.parent / "out")) == 7


def test_pipes_and_devices_are_listed_and_do_not_stop_the_run(originals: Path):
    os.mkfifo(originals / "pipe.png")
    (originals / "zero.png").symlink_to("/dev/zero")
    code, failed = _run(originals, "--allow_outside")
    assert code == 1
    assert failed == {
        "pipe.png": "a named pipe (FIFO), expected one image file; correct the path",
        "zero.png": "a device, expected one image file; correct the path",
    }

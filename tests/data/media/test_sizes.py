"""Sizes of media: read from headers once, and again only when the file changes."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from qwenvl.data.media import sizes
from qwenvl.data.media.sizes import ImageSize, Unreadable, scan_media_sizes, size_of
from qwenvl.data.media.videos import VideoInfo


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the path of every header that is read."""
    return note_reads(monkeypatch)


def note_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the path of every header that is read from here on."""
    paths: list[str] = []
    for name in ("image_size", "video_info"):
        original = getattr(sizes, name)

        def noted(path: str, *limit: int, original=original) -> tuple:
            paths.append(path)
            return original(path, *limit)

        monkeypatch.setattr(sizes, name, noted)
    return paths


def test_images_and_videos_get_their_sizes(media: Path, tmp_path: Path):
    image, video = str(media / "wide.png"), str(media / "clip.mp4")
    sizes = scan_media_sizes([image], [video], str(tmp_path))
    assert sizes == {image: ImageSize(96, 160), video: VideoInfo(16, 8.0, 64, 64)}


def test_a_header_is_read_once_whatever_the_number_of_records_and_runs(media: Path, tmp_path: Path, reads: list[str]):
    image, video = str(media / "wide.png"), str(media / "clip.mp4")
    first = scan_media_sizes([image, image], [video], str(tmp_path))
    assert sorted(reads) == [video, image]
    assert scan_media_sizes([image], [video], str(tmp_path)) == first
    assert len(reads) == 2


def test_files_of_another_run_stay_in_the_cache(media: Path, tmp_path: Path, reads: list[str]):
    one, other = str(media / "wide.png"), str(media / "tall.png")
    for path in (one, other, one):
        scan_media_sizes([path], [], str(tmp_path))
    assert reads == [one, other]


def test_a_changed_file_is_read_again(tmp_path: Path):
    path = tmp_path / "image.png"
    Image.new("L", (30, 20)).save(path)
    assert scan_media_sizes([str(path)], [], str(tmp_path)) == {str(path): ImageSize(20, 30)}
    Image.new("L", (50, 40)).save(path)
    os.utime(path, ns=(1, 1))
    assert scan_media_sizes([str(path)], [], str(tmp_path)) == {str(path): ImageSize(40, 50)}


def test_a_broken_file_is_unreadable_and_is_tried_again_once_it_is_repaired(tmp_path: Path):
    path = tmp_path / "image.png"
    path.write_bytes(b"nothing")
    stamp = path.stat().st_mtime_ns
    size = scan_media_sizes([str(path)], [], str(tmp_path))[str(path)]
    assert isinstance(size, Unreadable) and size.reason and str(path) not in size.reason
    Image.new("L", (30, 20)).save(path)
    os.utime(path, ns=(stamp, stamp))
    assert scan_media_sizes([str(path)], [], str(tmp_path))[str(path)] == ImageSize(20, 30)


def test_a_missing_file_is_unreadable(tmp_path: Path):
    path = str(tmp_path / "gone.png")
    assert isinstance(scan_media_sizes([path], [], str(tmp_path))[path], Unreadable)


def test_a_cache_that_cannot_be_written_is_logged_and_does_without(
    media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    image = str(media / "wide.png")
    with caplog.at_level(logging.WARNING):
        assert scan_media_sizes([image], [], str(tmp_path / "file")) == {image: ImageSize(96, 160)}
    assert caplog.text.count("cannot keep the media sizes") == len(caplog.records) == 1


def test_what_another_run_has_added_meanwhile_is_kept(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = str(media / "wide.png"), str(media / "tall.png")
    original = sizes.image_size

    def meanwhile(path: str, *limit: int) -> tuple:
        if path == one:
            scan_media_sizes([other], [], str(tmp_path))
        return original(path, *limit)

    monkeypatch.setattr(sizes, "image_size", meanwhile)
    scan_media_sizes([one], [], str(tmp_path))
    monkeypatch.undo()
    reads = note_reads(monkeypatch)
    scan_media_sizes([one, other], [], str(tmp_path))
    assert reads == []


def test_a_file_is_judged_in_each_of_its_uses(media: Path, tmp_path: Path):
    clip, image = str(media / "clip.mp4"), str(media / "wide.png")
    for _ in range(2):
        sizes = scan_media_sizes([clip, image], [clip, image], str(tmp_path))
        assert size_of(sizes, image, "image") == ImageSize(96, 160)
        assert size_of(sizes, clip, "video") == VideoInfo(16, 8.0, 64, 64)
        assert isinstance(size_of(sizes, image, "video"), Unreadable)
        assert isinstance(size_of(sizes, clip, "image"), Unreadable)

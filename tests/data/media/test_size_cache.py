"""The database of sizes: what several runs add stays, and nothing that happens to the file stops a run."""

import logging
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from qwenvl.data.media import size_cache
from qwenvl.data.media.size_cache import CACHE_FILE, ImageSize, SizeCache, is_local
from qwenvl.data.media.videos import VideoInfo

STAMP = (1_700_000_000_000_000_000, 4096)


def add(folder: Path, *paths: str) -> None:
    with SizeCache(folder) as cache:
        cache.add("image", [(path, STAMP, ImageSize(3, 4)) for path in paths])


def find(folder: Path, *paths: str, stamp: tuple[int, int] = STAMP) -> list:
    with SizeCache(folder) as cache:
        return cache.find("image", paths, [stamp] * len(paths))


def journal_mode(folder: Path) -> str:
    connection = sqlite3.connect(folder / CACHE_FILE)
    try:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("times", [None, (0.0, 0.04, 1.3)])
def test_images_and_videos_come_back_as_they_were(tmp_path: Path, times):
    info, path = VideoInfo(3, 29.97002997, 48, 64, times), "/name of \udcff bytes.mp4"
    with SizeCache(tmp_path) as cache:
        cache.add("video", [(path, STAMP, info)])
        cache.add("image", [(path, STAMP, ImageSize(5, 6))])
    with SizeCache(tmp_path) as cache:
        assert cache.find("video", [path, "/other"], [STAMP, STAMP]) == [info, None]
        assert cache.find("image", [path], [STAMP]) == [ImageSize(5, 6)]


@pytest.mark.parametrize("stamp", [(STAMP[0] + 1, STAMP[1]), (STAMP[0], STAMP[1] + 1), None])
def test_a_file_of_another_time_or_length_is_unknown(tmp_path: Path, stamp):
    add(tmp_path, "/a.png")
    assert find(tmp_path, "/a.png", stamp=stamp) == [None]


def test_more_files_than_one_query_takes(tmp_path: Path):
    paths = [f"/{number}.png" for number in range(2 * size_cache._PATHS_PER_QUERY + 1)]
    add(tmp_path, *paths)
    assert find(tmp_path, *paths, "/no.png") == [ImageSize(3, 4)] * len(paths) + [None]


def fill(folder: Path, name: str, barrier) -> None:
    barrier.wait()
    for number in range(20):
        add(folder, f"/{name}{number}.png")


@pytest.mark.parametrize("is_on_one_host", [True, False])
def test_runs_that_fill_it_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_on_one_host: bool):
    monkeypatch.setattr(size_cache, "is_local", lambda folder: is_on_one_host)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    runs = [context.Process(target=fill, args=(tmp_path, name, barrier)) for name in "abc"]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    paths = [f"/{name}{number}.png" for name in "abc" for number in range(20)]
    assert find(tmp_path, *paths) == [ImageSize(3, 4)] * 60


@pytest.mark.parametrize("content", [b"{}" * 4096, b"SQLite format 3\0" + b"7" * 8192])
def test_a_broken_file_is_rebuilt_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
):
    (tmp_path / CACHE_FILE).write_bytes(content)
    with caplog.at_level(logging.INFO):
        add(tmp_path, "/a.png")
        assert find(tmp_path, "/a.png") == [ImageSize(3, 4)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "are broken" in caplog.text and "starting a new file" in caplog.text


def test_a_file_that_breaks_behind_its_header_is_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [f"/{number:06d}.png" for number in range(2000)]
    add(tmp_path, *paths)
    file = tmp_path / CACHE_FILE
    data = bytearray(file.read_bytes())
    data[3 * 4096 :] = b"\xff" * (len(data) - 3 * 4096)
    file.write_bytes(data)
    with SizeCache(tmp_path) as cache:
        assert cache.find("image", paths, [STAMP] * len(paths)) == [None] * len(paths)
        cache.add("image", [("/a.png", STAMP, ImageSize(3, 4))])
    assert find(tmp_path, "/a.png") == [ImageSize(3, 4)]
    assert len(caplog.records) == 1


def test_videos_that_another_version_has_read_are_read_again(tmp_path: Path):
    with SizeCache(tmp_path) as cache:
        cache.add("video", [("/a.mp4", STAMP, VideoInfo(3, 25.0, 48, 64))])
    connection = sqlite3.connect(tmp_path / CACHE_FILE)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with SizeCache(tmp_path) as cache:
        assert cache.find("video", ["/a.mp4"], [STAMP]) == [None]


def test_a_file_of_another_layout_is_rebuilt(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / CACHE_FILE)
    connection.executescript("CREATE TABLE image (path); PRAGMA user_version = 99")
    connection.close()
    add(tmp_path, "/a.png")
    assert find(tmp_path, "/a.png") == [ImageSize(3, 4)]


def test_a_file_that_cannot_be_written_is_read_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    add(tmp_path, "/a.png")
    connect = sqlite3.connect

    # Permission bits do not bind root.
    def connect_read_only(path, uri=False, **options):
        return connect(path if uri else f"{path.absolute().as_uri()}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", connect_read_only)
    with SizeCache(tmp_path) as cache:
        cache.add("image", [("/b.png", STAMP, ImageSize(3, 4))])
        assert cache.find("image", ["/a.png", "/b.png"], [STAMP, STAMP]) == [ImageSize(3, 4), None]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot keep the media sizes" in caplog.text


def test_a_path_that_is_no_file_degrades_with_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / CACHE_FILE).mkdir()
    add(tmp_path, "/a.png")
    assert len(caplog.records) == 1


def test_a_lock_that_is_never_released_degrades_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(size_cache, "_BUSY_SECONDS", 0.05)
    add(tmp_path, "/a.png")
    holder = sqlite3.connect(tmp_path / CACHE_FILE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    add(tmp_path, "/b.png")
    assert find(tmp_path, "/a.png") == [ImageSize(3, 4)]
    holder.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(("kind", "mode"), [("ext4", "wal"), ("nfs4", "delete"), ("lustre", "delete")])
def test_only_a_local_file_system_gets_write_ahead_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
):
    class Mount:
        mountpoint, fstype = str(tmp_path.resolve()), kind

    monkeypatch.setattr(size_cache.psutil, "disk_partitions", lambda all: [Mount])
    add(tmp_path / "cache", "/a.png")
    assert is_local(tmp_path / "cache") == (mode == "wal")
    assert journal_mode(tmp_path / "cache") == mode
    assert find(tmp_path / "cache", "/a.png") == [ImageSize(3, 4)]

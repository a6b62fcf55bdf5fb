"""Tests of media without a file of their own: written once, whole, under what they hold."""

from pathlib import Path

import pytest

from qwenvl.data.media.store import MediaStore
from qwenvl.errors import UserError


@pytest.mark.parametrize(
    ("data", "name", "suffix"),
    [
        (b"\x89PNG\r\n", "x.jpg", ".png"),
        (b"\xff\xd8\xff\xe0", None, ".jpg"),
        (b"RIFF1234WEBP", None, ".webp"),
        (bytes(128) + b"DICM", None, ".dcm"),
        (b"\x00\x00\x00\x20ftypisom", None, ".mp4"),
        (b"?", "scan.NII", ".nii"),
        (b"?", "a/b.c/../x y", ""),
        (b"?", None, ""),
    ],
)
def test_the_suffix_is_that_of_the_content_or_else_of_the_name(
    tmp_path: Path, data: bytes, name: str | None, suffix: str
):
    path = Path(MediaStore(str(tmp_path)).keep_file(data, name))
    assert path.suffix == suffix and path.read_bytes() == data and path.is_relative_to(tmp_path / "media")


def test_equal_bytes_are_written_once_and_half_a_file_is_repaired(tmp_path: Path):
    store = MediaStore(str(tmp_path))
    path = Path(store.keep_file(b"abc", None))
    time = path.stat().st_mtime_ns
    assert store.keep_file(b"abc", None) == str(path) and path.stat().st_mtime_ns == time
    path.write_bytes(b"a")
    store.keep_file(b"abc", None)
    assert path.read_bytes() == b"abc"
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_a_folder_that_cannot_be_written_is_one_line_with_what_to_do(tmp_path: Path):
    (tmp_path / "media").write_bytes(b"")
    with pytest.raises(UserError, match="cannot store a medium of 3 bytes .* --media_cache_dir"):
        MediaStore(str(tmp_path)).keep_file(b"abc", None)

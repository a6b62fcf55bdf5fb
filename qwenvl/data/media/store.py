"""Store media that have no file of their own, bytes from a record and lists of frames, under their SHA-256."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qwenvl.data.dialects.media import IMAGE_SUFFIXES
from qwenvl.errors import UserError
from qwenvl.utils.files import written_whole

DEFAULT_CACHE_DIR = "~/.cache/qwenvl"
FRAME_LIST_SUFFIX = ".frames.json"
_FOLDER = "media"
# The first bytes of the usual formats. Readers go by content; the suffix is for people, and for DICOM.
_MAGIC = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
    (b"\x1a\x45\xdf\xa3", ".mkv"),
)
_KEPT = re.compile(rf"{os.sep}{_FOLDER}{os.sep}[0-9a-f]{{2}}{os.sep}[0-9a-f]{{64}}[^{os.sep}]*$")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class MediaStore:
    """A folder of the media cache, whose files are named by their content and never change."""

    def __init__(self, cache_dir: str | None = None) -> None:
        self._folder = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser().absolute() / _FOLDER

    def keep(self, data: bytes, suffix: str) -> str:
        """Return the path of a file with these bytes, writing it if there is none; raises `UserError`."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / digest[:2] / f"{digest}{suffix}"
        try:
            if not path.is_file() or path.stat().st_size != len(data):
                path.parent.mkdir(parents=True, exist_ok=True)
                with written_whole(path) as unfinished:
                    unfinished.write_bytes(data)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot store a medium of {len(data):,} bytes from a record ({reason}); free some space, or "
                "choose another folder with --media_cache_dir",
                path=path,
            ) from None
        return str(path)

    def keep_file(self, data: bytes, name: str | None) -> str:
        """Return the path of a file with these bytes, with the suffix of their format, or else that of `name`."""
        return self.keep(data, _suffix(data, name))

    def keep_frames(self, frames: Sequence[str], fps: float) -> str:
        """Return the path of a file that lists a video's frames (absolute paths) and their number per second."""
        return self.keep(json.dumps({"fps": fps, "frames": list(frames)}).encode(), FRAME_LIST_SUFFIX)


def is_kept(path: str) -> bool:
    """Return whether a path is that of a file that a `MediaStore` wrote, which no record names."""
    return _KEPT.search(path) is not None


def frames_in_folder(folder: str) -> list[str]:
    """Return the paths of the images in a folder in the order of the numbers in their names."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
    return [os.path.join(folder, name) for name in sorted(names, key=_natural_sort_key)]


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _suffix(data: bytes, name: str | None) -> str:
    if data[:4] == b"RIFF":
        return ".webp" if data[8:12] == b"WEBP" else ".avi"
    if data[4:8] == b"ftyp":
        return ".mp4"
    if data[128:132] == b"DICM":
        return ".dcm"
    known = next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), None)
    suffix = os.path.splitext(name or "")[1].lower()
    return known or (suffix if _SUFFIX.fullmatch(suffix) else "")

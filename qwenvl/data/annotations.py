"""Read an annotation file into checked records, and report the keys in it that are not read."""

import gc
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from qwenvl.data.bad_samples import BadSample, BadSampleTracker
from qwenvl.data.boxes import ImageSize
from qwenvl.data.dialects import InvalidRecordError, UnreadMediumError, to_conversation
from qwenvl.data.dialects.media import decode_data_url
from qwenvl.data.dialects.neutral import PLACEHOLDERS, Conversation, EmbeddedFile, FrameList, Medium, format_value
from qwenvl.data.dialects.objects import fill_objects
from qwenvl.data.json_rows import Row
from qwenvl.data.media.store import MediaStore, frames_in_folder
from qwenvl.data.records import Record, Turn
from qwenvl.data.rows import stream_rows
from qwenvl.data.table_rows import is_table
from qwenvl.data.turn_checks import RESERVED_TOKENS, add_placeholders, check_roles, check_texts, check_unicode
from qwenvl.errors import UserError
from qwenvl.utils.parallel import in_threads

__all__ = [
    "PLACEHOLDERS",
    "RESERVED_TOKENS",
    "Annotations",
    "BadSample",
    "BadSampleTracker",
    "Record",
    "Turn",
    "read_annotations",
]

logger = logging.getLogger(__name__)

# Control characters, and halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# The default of qwen-vl-utils for frames, too.
_DEFAULT_FPS = 2.0
MAX_NOTES = 20
# For image sizes only; whether an image is too large to be decoded is checked against the run's own limit later.
MAX_PIXELS = 2**40
# No path is longer; a longer string is usually the bytes of an image as text.
MAX_PATH_LENGTH = 4096
STAT_CHUNK = 512
_DRAFTS_PER_BATCH = 8192


@dataclass(frozen=True)
class Annotations:
    """The checked records of one or several files; `packs` lists indices into `records` when the file had packs.

    `notes` lists the keys that were not read and the defaults that were assumed, each with its number of records.
    """

    records: Sequence[Record]
    packs: list[list[int]] | None = None
    notes: tuple[str, ...] = ()


def read_annotations(
    annotation_path: str, media_root: str, tracker: BadSampleTracker, media_cache_dir: str | None = None
) -> Annotations:
    """Read an annotation file into checked records; media files are checked to exist (not decoded) under `media_root`.

    A list among the rows is a pack of records. A bad record is reported to `tracker`, and under "skip" it is left out
    of the result and of its pack. Media embedded in records are written to `media_cache_dir`. Raises `UserError` for a
    file that cannot be used at all or that leaves no record.
    """
    records: list[Record] = []
    packs, notes = read_records(annotation_path, media_root, tracker, media_cache_dir, records.append)
    return Annotations(records, packs, notes)


def read_records(
    annotation_path: str,
    media_root: str,
    tracker: BadSampleTracker,
    media_cache_dir: str | None,
    add_record: Callable[[Record], None],
) -> tuple[list[list[int]] | None, tuple[str, ...]]:
    """Read an annotation file as `read_annotations` does, passing each record to `add_record`; return packs and notes.

    At most a few thousand rows are in memory. Of JSON, the rows that cannot be read are reported first, then the
    records that cannot be used, then those whose media are missing.
    """
    reader = _Reader(str(annotation_path), media_root, tracker, MediaStore(media_cache_dir))
    with _collection_paused():
        packs = reader.read(add_record)
    return packs, reader.report_notes()


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the search for reference cycles among millions of new objects, which took half of the time of reading.

    None of the objects is part of a cycle.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Draft(NamedTuple):
    """A record before its files are checked: its pack, the frames of its videos, and their frames per second."""

    pack: int
    record: Record
    frames: tuple[str, ...] = ()
    fps: Sequence[float | None] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files that the record refers to."""
        return (*self.record.images, *self.record.videos, *self.frames)


class _Reader:
    """Reader of one file; counts the keys that are not read and the defaults that are assumed."""

    def __init__(self, source: str, media_root: str, tracker: BadSampleTracker, store: MediaStore) -> None:
        self._source, self._media_root, self._tracker, self._store = source, media_root, tracker, store
        self._root = os.path.abspath(media_root)
        self._notes: Counter[str] = Counter()
        self._folder_notes: Counter[str] = Counter()
        self._invalid: list[tuple[Row, InvalidRecordError | RecursionError]] = []
        self._shares: dict[str, str] = {}
        self._has_packs = False
        self._num_rows = self._num_records = 0

    def read(self, add_record: Callable[[Record], None]) -> list[list[int]] | None:
        """Pass on the usable records; return the indices of each pack among them, or None if the file has no packs."""
        # The row of each record.
        rows = array("q")
        bad_samples: list[BadSample] = []
        for drafts in self._drafts(stream_rows(self._source, self._report_unreadable)):
            missing = _find_missing(path for draft in drafts for path in draft.files)
            folders = {path for draft in drafts for path in draft.record.videos if path in missing}
            folders = {path for path in folders if os.path.isdir(path)}
            for draft in drafts:
                try:
                    record = self._finish_record(draft, missing, folders) if missing else draft.record
                except InvalidRecordError as error:
                    bad_samples.append(BadSample.of(draft.record, error.path, error.reason))
                    continue
                rows.append(draft.pack)
                add_record(record)
        for row, error in self._invalid:
            self._report_invalid(row, error)
        for bad in bad_samples:
            self._tracker.report(bad)
        if not rows:
            raise UserError(f"no usable record among {self._num_rows} rows; give at least one", path=self._source)
        if not self._has_packs:
            return None
        return [[index for index, _ in group] for _, group in groupby(enumerate(rows), lambda pair: pair[1])]

    def _drafts(self, rows: Iterable[Row]) -> Iterator[list[_Draft]]:
        """Yield the drafts of valid rows, a few thousand at a time; collect the errors of the others."""
        drafts = []
        for pack, row in enumerate(rows):
            self._num_rows += 1
            self._has_packs = self._has_packs or isinstance(row.value, list)
            for item in _records_of_row(row):
                self._num_records += 1
                try:
                    drafts.append(self._make_draft(pack, item))
                except (InvalidRecordError, RecursionError) as error:
                    # Without its traceback, whose frames hold the row.
                    self._note_invalid(item._replace(value=None), error.with_traceback(None))
            if len(drafts) >= _DRAFTS_PER_BATCH:
                yield drafts
                drafts = []
        yield drafts

    def _report_unreadable(self, location: str, reason: str) -> None:
        self._num_rows += 1
        self._tracker.report(BadSample(self._source, location, None, reason))

    def _note_invalid(self, row: Row, error: InvalidRecordError | RecursionError) -> None:
        """Report an invalid record: in a table, whose rows may take long to fetch, at once; else after all rows."""
        if is_table(self._source):
            self._report_invalid(row, error)
        else:
            self._invalid.append((row, error))

    def _report_invalid(self, row: Row, error: InvalidRecordError | RecursionError) -> None:
        path = None
        if isinstance(error, RecursionError):
            reason = "nested too deeply: give a record of lists and objects as documented"
        elif isinstance(error, UnreadMediumError):
            reason = f"{error.reason}{self._share_of_key(error.key)}"
        else:
            reason, path = error.reason, error.path
        self._tracker.report(BadSample(self._source, row.location, path, reason))

    def _share_of_key(self, key: str) -> str:
        """Return how many records of a JSON file have a key: such a mistake usually runs through the whole file."""
        if is_table(self._source):
            return ""
        if key not in self._shares:
            rows = stream_rows(self._source, lambda location, reason: None)
            values = (item.value for row in rows for item in _records_of_row(row))
            count = sum(isinstance(value, dict) and key in value for value in values)
            self._shares[key] = f" (in {count:,} of {self._num_records:,} records)" if count else ""
        return self._shares[key]

    def _finish_record(self, draft: _Draft, missing: Set[str], folders: Set[str]) -> Record:
        """Return the record, with a list of frames for each video that is a folder of them.

        Raises `InvalidRecordError` where one of its files is missing.
        """
        record = draft.record
        needed = (*record.images, *(path for path in record.videos if path not in folders), *draft.frames)
        missing_path = next((path for path in needed if path in missing), None)
        if missing_path is not None:
            exists = os.path.exists(missing_path)
            problem = "not a file, but a folder, a pipe or a device" if exists else "no such file"
            reason = f"{problem} (data_path is {self._media_root!r}): correct the path"
            raise InvalidRecordError(reason + self._backslash_hint(missing_path), missing_path)
        if not any(path in folders for path in record.videos):
            return record
        videos = []
        for path, fps in zip(record.videos, draft.fps, strict=True):
            videos.append(self._keep_frames(_list_frames(path), fps, self._folder_notes) if path in folders else path)
        return replace(record, videos=tuple(videos))

    def report_notes(self) -> tuple[str, ...]:
        """Log the keys not read and the defaults assumed, and return them: "`view` is not read (23 of 24 records)"."""
        self._notes.update(self._folder_notes)
        # Equal counts are sorted by name: the order of a set of keys differs between processes.
        ordered = sorted(self._notes.items(), key=lambda note: (-note[1], note[0]))
        notes = tuple(f"{note} ({count:,} of {self._num_records:,} records)" for note, count in ordered[:MAX_NOTES])
        if len(ordered) > MAX_NOTES:
            notes += (f"{len(ordered) - MAX_NOTES:,} more such keys",)
        if notes:
            logger.info("%s: %s", self._source, "; ".join(notes))
        return notes

    def _make_draft(self, pack: int, row: Row) -> _Draft:
        conversation = to_conversation(row.value)
        turns, media = conversation.turns, conversation.media
        check_roles(turns)
        images = tuple([self._resolve_medium(medium) for medium in media["image"]])
        if conversation.objects is not None:
            turns = fill_objects(turns, conversation.objects, lambda number: _image_size(images, number))
        check_texts(turns)
        if conversation.tools is not None:
            check_unicode(conversation.tools, "`tools`")
        turns = add_placeholders(turns, media)
        videos, frames, fps = self._read_videos(conversation) if media["video"] else ((), (), ())
        if conversation.unread:
            self._notes.update({f"{key} is not read" for key in conversation.unread})
        if conversation.fps is not None and not media["video"]:
            self._notes["`fps` is not read"] += 1
        record = Record(self._source, row.index, tuple(turns), images, videos, row.location, conversation.tools)
        return _Draft(pack, record, frames, fps)

    def _read_videos(
        self, conversation: Conversation
    ) -> tuple[tuple[str, ...], tuple[str, ...], Sequence[float | None]]:
        """Return the paths of the videos, of the frames of those given as frames, and their frames per second."""
        videos = conversation.media["video"]
        rates = conversation.fps if isinstance(conversation.fps, list) else [conversation.fps] * len(videos)
        if len(rates) != len(videos):
            raise InvalidRecordError(f"{len(rates)} `fps` for {len(videos)} video(s): give one, or one for each")
        paths: list[str] = []
        frames: list[str] = []
        for video, rate in zip(videos, rates, strict=True):
            if isinstance(video, FrameList):
                own = [self._resolve_medium(frame) for frame in video.frames]
                frames += own
                paths.append(self._keep_frames(own, video.fps or rate, self._notes))
            else:
                paths.append(self._resolve_medium(video))
        return tuple(paths), tuple(frames), rates

    def _keep_frames(self, frames: Sequence[str], fps: float | None, notes: Counter[str]) -> str:
        if fps is None:
            notes[f"`fps` is missing for the frames of a video, {_DEFAULT_FPS:g} is assumed"] += 1
        return self._store.keep_frames(frames, fps or _DEFAULT_FPS)

    def _resolve_medium(self, medium: Medium) -> str:
        if isinstance(medium, str) and medium.startswith("data:"):
            medium = decode_data_url(medium)
        if isinstance(medium, EmbeddedFile):
            return self._store.keep_file(medium.data, medium.name)
        return _absolute_path(medium, self._root)

    def _backslash_hint(self, path: str) -> str:
        if "\\" not in path:
            return ""
        written = path.removeprefix(os.path.join(self._root, "")).replace("\\", "/")
        candidate = os.path.normpath(os.path.join(self._root, written))
        hint = "; folders are separated by / here, not by \\"
        return f"{hint}: {candidate} exists" if os.path.isfile(candidate) else hint


def _records_of_row(row: Row) -> Iterator[Row]:
    if not isinstance(row.value, list):
        yield row
        return
    for index, value in enumerate(row.value):
        yield Row(f"{row.location} item {index}", index, value)


def _find_missing(paths: Iterable[str]) -> set[str]:
    """Return the paths that are no files; in threads, because on a network drive each look-up takes a round trip."""
    ordered = sorted(set(paths))
    found = in_threads(os.path.isfile, ordered, chunk_size=STAT_CHUNK)
    return {path for path, is_file in zip(ordered, found, strict=True) if not is_file}


def _list_frames(folder: str) -> list[str]:
    try:
        frames = frames_in_folder(folder)
    except OSError as error:
        raise InvalidRecordError(f"cannot read the folder ({error.strerror})", folder) from None
    if len(frames) < 2:
        raise InvalidRecordError(f"a folder with {len(frames)} image(s), expected the frames of a video", folder)
    return frames


def _image_size(images: Sequence[str], number: int) -> ImageSize:
    # Imported here because few records need it.
    from qwenvl.data.media.images import image_size

    if number >= len(images):
        raise InvalidRecordError(f"`objects` refers to image {number} (from 0), but there are {len(images)}")
    try:
        return ImageSize(*image_size(images[number], MAX_PIXELS))
    except UserError as error:
        reason = f"{error.reason_for(images[number])} (its size is needed for `objects`)"
        raise InvalidRecordError(reason, images[number]) from None


def _absolute_path(path: str, media_root: str) -> str:
    if "://" in path or path.startswith("data:"):
        if not path.startswith("file://"):
            raise InvalidRecordError(
                "media are read from files only: download it and give the path of the file", _make_printable(path[:80])
            )
        try:
            path = unquote(urlparse(path).path)
        except ValueError as error:
            raise InvalidRecordError(f"{format_value(path)} is not a file URL ({error}): give its path") from None
    if len(path) > MAX_PATH_LENGTH:
        raise InvalidRecordError(
            f"{format_value(path)} of {len(path):,} characters is not a path: give the path of a file, or the "
            "bytes of an image as data:image/png;base64,..."
        )
    if _UNPRINTABLE.search(path):
        raise InvalidRecordError(f"the path {format_value(path)} holds a control character or half of a surrogate pair")
    return os.path.normpath(os.path.join(media_root, path))


def _make_printable(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)

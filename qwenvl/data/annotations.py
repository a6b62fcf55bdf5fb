"""Turn an annotation file into checked records, and tell what of it is not read."""

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
from qwenvl.data.dialects.neutral import PLACEHOLDERS, Conversation, EmbeddedFile, FrameList, Medium, shown
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
# What qwen-vl-utils assumes of frames, too.
_DEFAULT_FPS = 2.0
MOST_NOTES = 20
# For sizes of images alone; whether an image is too large to be decoded is judged by the run's own limit, later.
MOST_PIXELS = 2**40
# No file's path is longer; what is, are mostly the bytes of an image as text.
MOST_PATH_CHARACTERS = 4096
STAT_CHUNK = 512
_DRAFTS_AT_ONCE = 8192


@dataclass(frozen=True)
class Annotations:
    """The checked records of one or several files; `packs` lists indices into `records` when the file had packs.

    `notes` tells which keys were not read and what was assumed, each with the number of records.
    """

    records: Sequence[Record]
    packs: list[list[int]] | None = None
    notes: tuple[str, ...] = ()


def read_annotations(
    annotation_path: str, media_root: str, tracker: BadSampleTracker, media_cache_dir: str | None = None
) -> Annotations:
    """Read an annotation file into checked records; media are looked for (not decoded) under `media_root`.

    A list among the rows is a pack of records. A bad record goes to `tracker`, and under "skip" it is missing from the
    result and from its pack. Media that the records themselves hold are written to `media_cache_dir`. Raises
    `UserError` for a file that cannot be used at all or that leaves no record.
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
    """Read an annotation file as `read_annotations` does, handing each record on; return its packs and its notes.

    No more than some thousands of rows are held. Of JSON, the rows that cannot be read are reported first, then the
    records that cannot be used, then those whose media are missing.
    """
    reader = _Reader(str(annotation_path), media_root, tracker, MediaStore(media_cache_dir))
    with _collection_paused():
        packs = reader.read(add_record)
    return packs, reader.report_notes()


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from looking for reference cycles among millions of new objects, none of which is in one.

    Half of the time of reading went there.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Draft(NamedTuple):
    """A record before its files were looked for: its pack, the frames of its videos, and their frames per second."""

    pack: int
    record: Record
    frames: tuple[str, ...] = ()
    fps: Sequence[float | None] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files that the record needs."""
        return (*self.record.images, *self.record.videos, *self.frames)


class _Reader:
    """Makes the records of one file; counts what they have that is not read, and what is assumed of them."""

    def __init__(self, source: str, media_root: str, tracker: BadSampleTracker, store: MediaStore) -> None:
        self._source, self._media_root, self._tracker, self._store = source, media_root, tracker, store
        self._root = os.path.abspath(media_root)
        self._notes: Counter[str] = Counter()
        self._folder_notes: Counter[str] = Counter()
        self._flaws: list[tuple[Row, InvalidRecordError | RecursionError]] = []
        self._shares: dict[str, str] = {}
        self._has_packs = False
        self._num_rows = self._num_records = 0

    def read(self, add_record: Callable[[Record], None]) -> list[list[int]] | None:
        """Hand on the usable records; return the indices of each pack among them, or None where there are no packs."""
        # By record: the row that it stands in.
        rows = array("q")
        lost: list[BadSample] = []
        for drafts in self._drafts(stream_rows(self._source, self._report_unreadable)):
            missing = _that_are_not((path for draft in drafts for path in draft.files), os.path.isfile)
            folders = {path for draft in drafts for path in draft.record.videos if path in missing}
            folders = {path for path in folders if os.path.isdir(path)}
            for draft in drafts:
                try:
                    record = self._finish(draft, missing, folders) if missing else draft.record
                except InvalidRecordError as error:
                    lost.append(BadSample.of(draft.record, error.path, error.reason))
                    continue
                rows.append(draft.pack)
                add_record(record)
        for row, error in self._flaws:
            self._report_flaw(row, error)
        for bad in lost:
            self._tracker.report(bad)
        if not rows:
            raise UserError(f"no usable record among {self._num_rows} rows; give at least one", path=self._source)
        if not self._has_packs:
            return None
        return [[index for index, _ in group] for _, group in groupby(enumerate(rows), lambda pair: pair[1])]

    def _drafts(self, rows: Iterable[Row]) -> Iterator[list[_Draft]]:
        """Yield what the rows become, some thousands at a time; keep what is wrong with the others."""
        drafts = []
        for pack, row in enumerate(rows):
            self._num_rows += 1
            self._has_packs = self._has_packs or isinstance(row.value, list)
            for item in _items(row):
                self._num_records += 1
                try:
                    drafts.append(self._draft(pack, item))
                except (InvalidRecordError, RecursionError) as error:
                    # Without what it was raised in, which holds the row.
                    self._note_flaw(item._replace(value=None), error.with_traceback(None))
            if len(drafts) >= _DRAFTS_AT_ONCE:
                yield drafts
                drafts = []
        yield drafts

    def _report_unreadable(self, place: str, reason: str) -> None:
        self._num_rows += 1
        self._tracker.report(BadSample(self._source, place, None, reason))

    def _note_flaw(self, row: Row, error: InvalidRecordError | RecursionError) -> None:
        """Report a flaw: of tables, whose rows may take long to fetch, at once; else when all rows have been read."""
        if is_table(self._source):
            self._report_flaw(row, error)
        else:
            self._flaws.append((row, error))

    def _report_flaw(self, row: Row, error: InvalidRecordError | RecursionError) -> None:
        path = None
        if isinstance(error, RecursionError):
            reason = "nested too deeply: give a record of lists and objects as documented"
        elif isinstance(error, UnreadMediumError):
            reason = f"{error.reason}{self._share(error.key)}"
        else:
            reason, path = error.reason, error.path
        self._tracker.report(BadSample(self._source, row.location, path, reason))

    def _share(self, key: str) -> str:
        """Return in how many records of a JSON file a key stands: a slip mostly goes through a whole file."""
        if is_table(self._source):
            return ""
        if key not in self._shares:
            rows = stream_rows(self._source, lambda place, reason: None)
            values = (item.value for row in rows for item in _items(row))
            count = sum(isinstance(value, dict) and key in value for value in values)
            self._shares[key] = f" (in {count:,} of {self._num_records:,} records)" if count else ""
        return self._shares[key]

    def _finish(self, draft: _Draft, missing: Set[str], folders: Set[str]) -> Record:
        """Return the record, with a list of frames for each video that is a folder of them.

        Raises `InvalidRecordError` where one of its files is missing.
        """
        record = draft.record
        needed = (*record.images, *(path for path in record.videos if path not in folders), *draft.frames)
        lost = next((path for path in needed if path in missing), None)
        if lost is not None:
            what = "no such file" if not os.path.exists(lost) else "not a file, but a folder, a pipe or a device"
            reason = f"{what} (data_path is {self._media_root!r}): correct the path"
            raise InvalidRecordError(reason + self._backslash_hint(lost), lost)
        if not any(path in folders for path in record.videos):
            return record
        videos = []
        for path, fps in zip(record.videos, draft.fps, strict=True):
            videos.append(self._keep_frames(_frames(path), fps, self._folder_notes) if path in folders else path)
        return replace(record, videos=tuple(videos))

    def report_notes(self) -> tuple[str, ...]:
        """Log once what was not read or assumed, and return it: "`view` is not read (23 of 24 records)"."""
        self._notes.update(self._folder_notes)
        # Equal counts by name: the order of a set of keys differs from process to process.
        ordered = sorted(self._notes.items(), key=lambda note: (-note[1], note[0]))
        counted = [(what, f"{count:,} of {self._num_records:,} records") for what, count in ordered]
        notes = tuple(f"{what} ({share})" for what, share in counted[:MOST_NOTES])
        if len(counted) > MOST_NOTES:
            notes += (f"{len(counted) - MOST_NOTES:,} more such keys",)
        if notes:
            logger.info("%s: %s", self._source, "; ".join(notes))
        return notes

    def _draft(self, pack: int, row: Row) -> _Draft:
        conversation = to_conversation(row.value)
        turns, media = conversation.turns, conversation.media
        check_roles(turns)
        images = tuple([self._path(medium) for medium in media["image"]])
        if conversation.objects is not None:
            turns = fill_objects(turns, conversation.objects, lambda number: _image_size(images, number))
        check_texts(turns)
        if conversation.tools is not None:
            check_unicode(conversation.tools, "`tools`")
        turns = add_placeholders(turns, media)
        videos, frames, fps = self._videos(conversation) if media["video"] else ((), (), ())
        if conversation.unread:
            self._notes.update({f"{key} is not read" for key in conversation.unread})
        if conversation.fps is not None and not media["video"]:
            self._notes["`fps` is not read"] += 1
        record = Record(self._source, row.index, tuple(turns), images, videos, row.location, conversation.tools)
        return _Draft(pack, record, frames, fps)

    def _videos(self, conversation: Conversation) -> tuple[tuple[str, ...], tuple[str, ...], Sequence[float | None]]:
        """Return the paths of the videos, of the frames of those given as frames, and their frames per second."""
        videos = conversation.media["video"]
        rates = conversation.fps if isinstance(conversation.fps, list) else [conversation.fps] * len(videos)
        if len(rates) != len(videos):
            raise InvalidRecordError(f"{len(rates)} `fps` for {len(videos)} video(s): give one, or one for each")
        paths: list[str] = []
        frames: list[str] = []
        for video, rate in zip(videos, rates, strict=True):
            if isinstance(video, FrameList):
                own = [self._path(frame) for frame in video.frames]
                frames += own
                paths.append(self._keep_frames(own, video.fps or rate, self._notes))
            else:
                paths.append(self._path(video))
        return tuple(paths), tuple(frames), rates

    def _keep_frames(self, frames: Sequence[str], fps: float | None, notes: Counter[str]) -> str:
        if fps is None:
            notes[f"`fps` is missing for the frames of a video, {_DEFAULT_FPS:g} is assumed"] += 1
        return self._store.keep_frames(frames, fps or _DEFAULT_FPS)

    def _path(self, medium: Medium) -> str:
        if isinstance(medium, str) and medium.startswith("data:"):
            medium = decode_data_url(medium)
        if isinstance(medium, EmbeddedFile):
            return self._store.keep_file(medium.data, medium.name)
        return _absolute(medium, self._root)

    def _backslash_hint(self, lost: str) -> str:
        if "\\" not in lost:
            return ""
        written = lost.removeprefix(os.path.join(self._root, "")).replace("\\", "/")
        meant = os.path.normpath(os.path.join(self._root, written))
        return "; folders are parted by / here, not by \\" + (f": {meant} is there" if os.path.isfile(meant) else "")


def _items(row: Row) -> Iterator[Row]:
    if not isinstance(row.value, list):
        yield row
        return
    for index, value in enumerate(row.value):
        yield Row(f"{row.location} item {index}", index, value)


def _that_are_not(paths: Iterable[str], kind: Callable[[str], bool]) -> set[str]:
    """Return the paths that are not of a kind; threads, because on a network drive each question takes a round trip."""
    ordered = sorted(set(paths))
    matches = in_threads(kind, ordered, chunk_size=STAT_CHUNK)
    return {path for path, matched in zip(ordered, matches, strict=True) if not matched}


def _frames(folder: str) -> list[str]:
    try:
        frames = frames_in_folder(folder)
    except OSError as error:
        raise InvalidRecordError(f"cannot read the folder ({error.strerror})", folder) from None
    if len(frames) < 2:
        raise InvalidRecordError(f"a folder with {len(frames)} image(s), expected the frames of a video", folder)
    return frames


def _image_size(images: Sequence[str], number: int) -> ImageSize:
    # Here, not above: few records need it.
    from qwenvl.data.media.images import image_size

    if number >= len(images):
        raise InvalidRecordError(f"`objects` names the image {number} (from 0), but there are {len(images)}")
    try:
        return ImageSize(*image_size(images[number], MOST_PIXELS))
    except UserError as error:
        reason = f"{error.reason_for(images[number])} (its size is needed for `objects`)"
        raise InvalidRecordError(reason, images[number]) from None


def _absolute(path: str, media_root: str) -> str:
    if "://" in path or path.startswith("data:"):
        if not path.startswith("file://"):
            raise InvalidRecordError(
                "media are read from files only: download it and give the path of the file", _one_line(path[:80])
            )
        try:
            path = unquote(urlparse(path).path)
        except ValueError as error:
            raise InvalidRecordError(f"{shown(path)} is no address of a file ({error}): give its path") from None
    if len(path) > MOST_PATH_CHARACTERS:
        raise InvalidRecordError(
            f"{shown(path)} of {len(path):,} characters is no path: give the path of a file, or the bytes of an image "
            "as data:image/png;base64,..."
        )
    if _UNPRINTABLE.search(path):
        raise InvalidRecordError(f"the path {shown(path)} holds a control character or half of a surrogate pair")
    return os.path.normpath(os.path.join(media_root, path))


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub("?", text)

"""Check records for what training does not: paths that leave the folder, wrong boxes, undecodable media."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from transformers import BaseVideoProcessor

from qwenvl.check.duplicates import files_of, media_of
from qwenvl.check.raw_rows import iter_items, iter_rows
from qwenvl.data.annotations import BadSample, Record
from qwenvl.data.boxes import ImageSize, boxes_from_text, check_box, from_space
from qwenvl.data.media.frames import load_clip
from qwenvl.data.media.images import MAX_IMAGE_PIXELS, load_image
from qwenvl.data.media.sizes import MediaSizes, Unreadable, size_of
from qwenvl.data.media.store import is_kept
from qwenvl.errors import UserError
from qwenvl.utils.cli import progress
from qwenvl.utils.parallel import in_parallel

_BOX_KEY = '"bbox_2d"'
# Qwen's answers list boxes; datasets also write a single one without the list.
_SINGLE_BOX = re.compile(r"\{[^{}]*\"bbox_2d\"[^{}]*\}")
_FILES_A_TASK = 32


class DecodeTask(NamedTuple):
    """Files that one worker decodes: pictures, or videos when there is a processor that samples their frames."""

    paths: list[str]
    video_processor: BaseVideoProcessor | None
    max_image_pixels: int = MAX_IMAGE_PIXELS


def find_outside(records: Sequence[Record], data_path: str) -> Iterator[BadSample]:
    """Yield the records of one file with a path that leaves `data_path` through `..` or a link.

    A file that an absolute path names outright is where its author wanted it.
    """
    root = os.path.join(os.path.abspath(data_path), "")
    real_root = os.path.join(os.path.realpath(data_path), "")
    folders: dict[str, str] = {}
    escaping: dict[str, tuple[Record, list[str]]] = {}
    for record in records:
        files = files_of(record)
        outside = [path for path in files if not path.startswith(root) and not is_kept(path)]
        if outside:
            escaping[record.location or ""] = (record, outside)
        linked = next((p for p in files if p.startswith(root) and not _real(p, folders).startswith(real_root)), None)
        if linked is not None:
            yield BadSample.of(record, linked, f"a link leads out of data_path {data_path!r}, to {_real(linked, {})}")
    for record, path in _not_absolute(escaping):
        yield BadSample.of(record, path, f"leaves data_path {data_path!r} through `..`: move the file into it")


def find_wrong_boxes(records: Iterable[Record], sizes: MediaSizes, space: str) -> Iterator[BadSample]:
    """Yield the records with a box in an answer that is no box or lies in none of their pictures.

    `space` is what the numbers count in: "relative" (0 to 1000) or "absolute" (pixels of the original).
    """
    for record in records:
        texts = [turn.text for turn in record.turns if turn.role == "assistant" and _BOX_KEY in turn.text]
        if not texts:
            continue
        found = [size_of(sizes, path, kind) for kind, paths in uses_of(record) for path in paths]
        pictures = [ImageSize(size.height, size.width) for size in found if not isinstance(size, Unreadable)]
        flaw = next(filter(None, (_box_flaw(text, pictures, space) for text in texts)), None)
        if flaw is not None:
            yield BadSample.of(record, next(iter(media_of(record)), None), flaw)


def find_swapped_turns(records: Iterable[Record]) -> Iterator[BadSample]:
    """Yield the records that begin with an answer and end with a question, of which the answers are the questions."""
    for record in records:
        roles = [turn.role for turn in record.turns if turn.role != "system"]
        if roles[0] == "assistant" and roles[-1] == "user":
            reason = "it begins with an answer and ends with a question: are the roles of its turns swapped?"
            yield BadSample.of(record, None, reason)


def find_undecodable(
    records: Sequence[Record],
    video_processor: BaseVideoProcessor,
    workers: int,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Iterator[BadSample]:
    """Yield the records with a picture, or a video's sampled frames, that cannot be decoded."""
    images = sorted({path for record in records for path in record.images})
    videos = sorted({path for record in records for path in record.videos})
    tasks = [DecodeTask(chunk, None, max_image_pixels) for chunk in _chunks(images)]
    tasks += [DecodeTask(chunk, video_processor) for chunk in _chunks(videos)]
    reasons: dict[tuple[str, str], str] = {}
    # A worker takes seconds to start.
    done = in_parallel(decode_files, tasks, min(workers, len(tasks)))
    for part in progress(done, "decode", "batch", len(tasks)):
        reasons |= part
    for record in records:
        uses = ((kind, path) for kind, paths in uses_of(record) for path in paths)
        lost = next((use for use in uses if use in reasons), None)
        if lost is not None:
            yield BadSample.of(record, lost[1], reasons[lost])


def decode_files(task: DecodeTask) -> dict[tuple[str, str], str]:
    """Decode all files of a task and return why some cannot be, by use ("image" or "video") and path."""
    reasons = {}
    kind = "image" if task.video_processor is None else "video"
    for path in task.paths:
        try:
            if task.video_processor is None:
                load_image(path, task.max_image_pixels)
            else:
                load_clip(path, task.video_processor)
        except UserError as error:
            reasons[kind, path] = error.reason_for(path)
        except OSError as error:
            reasons[kind, path] = str(error)
    return reasons


def uses_of(record: Record) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the record's files by what they are used as: one file may be shown as an image and as a video."""
    return ("image", record.images), ("video", record.videos)


def _chunks(paths: list[str]) -> list[list[str]]:
    return [paths[start : start + _FILES_A_TASK] for start in range(0, len(paths), _FILES_A_TASK)]


def _real(path: str, folders: dict[str, str]) -> str:
    """Return the path without links; `folders` remembers the folders, because a look at each part takes long."""
    folder, name = os.path.split(path)
    if os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _not_absolute(escaping: Mapping[str, tuple[Record, list[str]]]) -> Iterator[tuple[Record, str]]:
    """Yield those of one file's records that do not name their path outright, as the file itself shows."""
    if not escaping:
        return
    record, _ = next(iter(escaping.values()))
    for row in iter_rows(record.source):
        for place, value in iter_items(row):
            if place not in escaping:
                continue
            record, outside = escaping[place]
            named = {_plain(text) for text in _strings(value)}
            # A folder of frames is named in place of its files.
            relative = next((path for path in outside if named.isdisjoint((path, os.path.dirname(path)))), None)
            if relative is not None:
                yield record, relative


def _plain(text: str) -> str:
    return os.path.normpath(unquote(text.removeprefix("file://")) if text.startswith("file://") else text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _box_flaw(text: str, pictures: Sequence[ImageSize], space: str) -> str | None:
    named = text.count(_BOX_KEY)
    boxes = boxes_from_text(text)
    if len(boxes) < named:
        boxes = [box for single in _SINGLE_BOX.findall(text) for box in boxes_from_text(f"[{single}]")]
    if len(boxes) < named:
        return f"{named} bbox_2d in an answer, of which {named - len(boxes)} is no list of 4 numbers in whole JSON"
    for _, values in boxes:
        flaws = [_outside(values, picture, space) for picture in pictures]
        if flaws and all(flaws):
            return f"bbox_2d {list(values)} in {space} coordinates: {flaws[0]}"
    return None


def _outside(values: Sequence[float], picture: ImageSize, space: str) -> str | None:
    try:
        check_box(from_space(values, space, picture), picture)
    except UserError as error:
        return str(error)
    return None

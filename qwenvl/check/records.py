"""Find what training does not check: paths out of the data folder, invalid boxes, swapped roles, undecodable media."""

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
# Qwen answers with a list of boxes; some datasets have single boxes without a list.
_SINGLE_BOX = re.compile(r"\{[^{}]*\"bbox_2d\"[^{}]*\}")
_FILES_PER_TASK = 32


class DecodeTask(NamedTuple):
    """Files that one worker decodes: images, or videos if there is a processor that samples their frames."""

    paths: list[str]
    video_processor: BaseVideoProcessor | None
    max_image_pixels: int = MAX_IMAGE_PIXELS


def find_outside(records: Sequence[Record], data_path: str) -> Iterator[BadSample]:
    """Yield the records of one file with a path that leads out of `data_path` through `..` or a link.

    Absolute paths are accepted: they are explicit.
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
        linked = next((p for p in files if p.startswith(root) and not _resolve(p, folders).startswith(real_root)), None)
        if linked is not None:
            reason = f"a link leads out of data_path {data_path!r}, to {_resolve(linked, {})}"
            yield BadSample.of(record, linked, reason)
    for record, path in _without_absolute_paths(escaping):
        yield BadSample.of(record, path, f"leads out of data_path {data_path!r} through `..`: move the file into it")


def find_wrong_boxes(records: Iterable[Record], sizes: MediaSizes, space: str) -> Iterator[BadSample]:
    """Yield the records with an invalid box in an answer, or a box that is outside all of their images.

    `space` is the unit of the coordinates: "relative" (0 to 1000) or "absolute" (pixels of the original).
    """
    for record in records:
        texts = [turn.text for turn in record.turns if turn.role == "assistant" and _BOX_KEY in turn.text]
        if not texts:
            continue
        found = [size_of(sizes, path, kind) for kind, paths in media_by_kind(record) for path in paths]
        images = [ImageSize(size.height, size.width) for size in found if not isinstance(size, Unreadable)]
        reason = next(filter(None, (_box_problem(text, images, space) for text in texts)), None)
        if reason is not None:
            yield BadSample.of(record, next(iter(media_of(record)), None), reason)


def find_swapped_turns(records: Iterable[Record]) -> Iterator[BadSample]:
    """Yield the records that begin with an answer and end with a question, which suggests swapped roles."""
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
    """Yield the records with an image, or a sampled frame of a video, that cannot be decoded."""
    images = sorted({path for record in records for path in record.images})
    videos = sorted({path for record in records for path in record.videos})
    tasks = [DecodeTask(chunk, None, max_image_pixels) for chunk in _chunks(images)]
    tasks += [DecodeTask(chunk, video_processor) for chunk in _chunks(videos)]
    reasons: dict[tuple[str, str], str] = {}
    # No more workers than tasks: each takes seconds to start.
    done = in_parallel(decode_files, tasks, min(workers, len(tasks)))
    for part in progress(done, "decode", "batch", len(tasks)):
        reasons |= part
    for record in records:
        uses = ((kind, path) for kind, paths in media_by_kind(record) for path in paths)
        lost = next((use for use in uses if use in reasons), None)
        if lost is not None:
            yield BadSample.of(record, lost[1], reasons[lost])


def decode_files(task: DecodeTask) -> dict[tuple[str, str], str]:
    """Decode the files of a task; return the reasons of failures by kind ("image" or "video") and path."""
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


def media_by_kind(record: Record) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the record's paths by kind; the same file may be used as an image and as a video."""
    return ("image", record.images), ("video", record.videos)


def _chunks(paths: list[str]) -> list[list[str]]:
    return [paths[start : start + _FILES_PER_TASK] for start in range(0, len(paths), _FILES_PER_TASK)]


def _resolve(path: str, folders: dict[str, str]) -> str:
    """Return the path with links resolved; `folders` caches those of folders, because resolving is slow."""
    folder, name = os.path.split(path)
    if os.path.islink(path):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)


def _without_absolute_paths(escaping: Mapping[str, tuple[Record, list[str]]]) -> Iterator[tuple[Record, str]]:
    """Yield the records of one file whose row does not contain the path as an absolute one."""
    if not escaping:
        return
    record, _ = next(iter(escaping.values()))
    for row in iter_rows(record.source):
        for location, value in iter_items(row):
            if location not in escaping:
                continue
            record, outside = escaping[location]
            named = {_normalize(text) for text in _strings(value)}
            # A row may name a folder of frames and not its files.
            relative = next((path for path in outside if named.isdisjoint((path, os.path.dirname(path)))), None)
            if relative is not None:
                yield record, relative


def _normalize(text: str) -> str:
    return os.path.normpath(unquote(text.removeprefix("file://")) if text.startswith("file://") else text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _box_problem(text: str, images: Sequence[ImageSize], space: str) -> str | None:
    expected = text.count(_BOX_KEY)
    boxes = boxes_from_text(text)
    if len(boxes) < expected:
        boxes = [box for single in _SINGLE_BOX.findall(text) for box in boxes_from_text(f"[{single}]")]
    if len(boxes) < expected:
        return f"{expected - len(boxes)} of {expected} bbox_2d in an answer is not a list of 4 numbers in valid JSON"
    for _, values in boxes:
        reasons = [_why_outside(values, image, space) for image in images]
        if reasons and all(reasons):
            return f"bbox_2d {list(values)} in {space} coordinates: {reasons[0]}"
    return None


def _why_outside(values: Sequence[float], image: ImageSize, space: str) -> str | None:
    try:
        check_box(from_space(values, space, image), image)
    except UserError as error:
        return str(error)
    return None

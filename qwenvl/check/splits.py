"""Find what leaks from the evaluation data into training: the same files, files of equal content, the same patients."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from qwenvl.check.duplicates import PictureIds, media_of
from qwenvl.check.raw_rows import iter_items, iter_rows
from qwenvl.data.annotations import BadSample, Record

# Keys of a record that say whose images it shows.
SUBJECT_KEYS = ("subject_id", "patient_id")

Subject = tuple[str, str]


def find_leaks(records: Sequence[Record], held_out: Sequence[Record], ids: PictureIds) -> Iterator[BadSample]:
    """Yield each training record that shows an image or video of the evaluation data."""
    seen = {ids[path]: (record, path) for record in held_out for path in media_of(record)}
    for record in records:
        shared = next((path for path in media_of(record) if ids[path] in seen), None)
        if shared is None:
            continue
        other, path = seen[ids[shared]]
        what = "the same file is" if _is_one_file(shared, path) else f"a file of the same content, {path}, is"
        yield BadSample.of(record, shared, f"{what} in the evaluation data ({other.where}): keep it in one")


def find_shared_subjects(records: Sequence[Record], held_out: Sequence[Record]) -> Iterator[BadSample]:
    """Yield each training record of a subject (`subject_id` or `patient_id`) that the evaluation data have too."""
    seen = {subject: record for record, subjects in _with_subjects(held_out) for subject in subjects}
    if not seen:
        return
    for record, subjects in _with_subjects(records):
        shared = next((subject for subject in subjects if subject in seen), None)
        if shared is not None:
            key, value = shared
            reason = f"{key} {value} is in the evaluation data too ({seen[shared].where}): keep a subject in one"
            yield BadSample.of(record, None, reason)


def _with_subjects(records: Sequence[Record]) -> Iterator[tuple[Record, list[Subject]]]:
    """Yield the records whose rows name a subject; rows are read from their files once more, one at a time."""
    by_source: dict[str, dict[str, Record]] = {}
    for record in records:
        by_source.setdefault(record.source, {})[record.location or f"row {record.row}"] = record
    for source, places in by_source.items():
        for row in iter_rows(source):
            for place, value in iter_items(row):
                subjects = _subjects(value)
                if subjects and place in places:
                    yield places[place], subjects


def _subjects(value: Any) -> list[Subject]:
    """Return the subject under each key; 7, "7" and 7.0 are one."""
    if not isinstance(value, dict):
        return []
    given = {key: value[key] for key in SUBJECT_KEYS if value.get(key) not in (None, "")}
    whole = {key: int(each) if isinstance(each, float) and each.is_integer() else each for key, each in given.items()}
    return [(key, str(each)) for key, each in whole.items() if isinstance(each, int | str | float)]


def _is_one_file(path: str, other: str) -> bool:
    try:
        return path == other or os.path.samefile(path, other)
    except OSError:
        return False

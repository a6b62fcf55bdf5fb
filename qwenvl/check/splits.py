"""Find what training and evaluation data share: files, files of equal content, and patients."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from qwenvl.check.duplicates import MediaIds, media_of
from qwenvl.check.raw_rows import iter_items, iter_rows
from qwenvl.data.annotations import BadSample, Record

# Keys of a record with the subject of its images.
SUBJECT_KEYS = ("subject_id", "patient_id")

Subject = tuple[str, str]


def find_leaks(records: Sequence[Record], held_out: Sequence[Record], ids: MediaIds) -> Iterator[BadSample]:
    """Yield each training record that shows an image or video of the evaluation data."""
    seen = {ids[path]: (record, path) for record in held_out for path in media_of(record)}
    for record in records:
        shared = next((path for path in media_of(record) if ids[path] in seen), None)
        if shared is None:
            continue
        other, path = seen[ids[shared]]
        what = "the same file is" if _is_same_file(shared, path) else f"a file of the same content, {path}, is"
        yield BadSample.of(
            record, shared, f"{what} in the evaluation data ({other.full_location}): keep it in one of the two"
        )


def find_shared_subjects(records: Sequence[Record], held_out: Sequence[Record]) -> Iterator[BadSample]:
    """Yield each training record of a subject (`subject_id` or `patient_id`) that is in the evaluation data, too."""
    seen = {subject: record for record, subjects in _with_subjects(held_out) for subject in subjects}
    if not seen:
        return
    for record, subjects in _with_subjects(records):
        shared = next((subject for subject in subjects if subject in seen), None)
        if shared is not None:
            key, value = shared
            other = seen[shared].full_location
            reason = f"{key} {value} is in the evaluation data, too ({other}): keep each subject in one of the two"
            yield BadSample.of(record, None, reason)


def _with_subjects(records: Sequence[Record]) -> Iterator[tuple[Record, list[Subject]]]:
    """Yield the records whose rows name a subject; the rows are read again from their files, one at a time."""
    by_source: dict[str, dict[str, Record]] = {}
    for record in records:
        by_source.setdefault(record.source, {})[record.location or f"row {record.row}"] = record
    for source, own in by_source.items():
        for row in iter_rows(source):
            for location, value in iter_items(row):
                subjects = _subjects(value)
                if subjects and location in own:
                    yield own[location], subjects


def _subjects(value: Any) -> list[Subject]:
    """Return the subjects of a row as (key, value); 7, "7" and 7.0 are the same."""
    if not isinstance(value, dict):
        return []
    given = {key: value[key] for key in SUBJECT_KEYS if value.get(key) not in (None, "")}
    whole = {key: int(each) if isinstance(each, float) and each.is_integer() else each for key, each in given.items()}
    return [(key, str(each)) for key, each in whole.items() if isinstance(each, int | str | float)]


def _is_same_file(path: str, other: str) -> bool:
    try:
        return path == other or os.path.samefile(path, other)
    except OSError:
        return False

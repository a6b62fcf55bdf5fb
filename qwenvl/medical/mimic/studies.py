"""Turn the images and reports of one patient into annotation records."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qwenvl.medical.mimic.reports import PatientReports, decode_report, read_texts
from qwenvl.medical.mimic.tables import FRONTAL, ImageRow
from qwenvl.medical.records import (
    DroppedError,
    Prior,
    ReportOptions,
    build_record,
    context_lines,
    prior_report,
    target_text,
    user_text,
)
from qwenvl.medical.reports import parse_sections
from qwenvl.medical.views import ViewOptions, group_images

PRIORS = ("none", "report", "image", "both")
_VIEW_ORDER = (*FRONTAL, "LATERAL", "LL")


@dataclass(frozen=True)
class MimicOptions:
    """What the records of a patient contain.

    Attributes:
        image_root: The folder with p10 to p19.
        prefix: What image paths in the records start with in place of `image_root`.
        report: The text of the conversations.
        views: The images of each record.
        prior: What a record includes of the last earlier study, one of `PRIORS`.
        check_files: Whether image files must exist and not be empty.
    """

    image_root: str
    prefix: str
    report: ReportOptions = ReportOptions()
    views: ViewOptions = ViewOptions()
    prior: str = "none"
    check_files: bool = True


@dataclass(frozen=True)
class Patient:
    """The images and reports of one patient, and the labels by study id."""

    images: list[ImageRow]
    reports: PatientReports
    labels: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass
class Converted:
    """The result for some studies: records as (split, JSON), dropped ones as (subject, study, reason), and counts."""

    studies: int = 0
    records: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[int, int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Study:
    """One study: its usable images, frontal ones first; `problem` is why it cannot yield a record."""

    subject_id: int
    study_id: int
    split: str
    taken: tuple[int, float] | None
    images: tuple[ImageRow, ...]
    sections: dict[str, str]
    problem: str | None

    @property
    def frontal(self) -> ImageRow | None:
        return next(filter(_is_frontal, self.images), None)


def convert_patients(task: tuple[list[Patient], MimicOptions]) -> Converted:
    """Convert some patients; each study yields records, or is in `dropped` with one reason."""
    patients, options = task
    result = Converted()
    for patient in patients:
        texts = read_texts(patient.reports)
        studies = _studies(patient, texts, options, result.counts)
        result.counts["reports without a study"] += len(texts.keys() - {study.study_id for study in studies})
        result.studies += len(studies)
        for study in studies:
            try:
                records = _records(study, studies, patient.labels.get(study.study_id), options)
            except DroppedError as reason:
                result.dropped.append((study.subject_id, study.study_id, str(reason)))
                continue
            result.counts["studies with a prior study"] += "prior_study_id" in records[0]
            result.records += [(study.split, json.dumps(record, ensure_ascii=False)) for record in records]
    return result


def _studies(patient: Patient, texts: dict[int, bytes], options: MimicOptions, counts: Counter[str]) -> list[_Study]:
    groups: dict[int, list[ImageRow]] = {}
    for image in patient.images:
        groups.setdefault(image.study_id, []).append(image)
    studies = []
    subject_id = patient.reports.subject_id
    for study_id, images in groups.items():
        report = decode_report(texts[study_id]) if study_id in texts else None
        problem = None
        if len({image.split for image in images}) > 1:
            problem = "images in more than one split"
        elif report is None:
            problem = "report is empty or not UTF-8 text" if study_id in texts else "no report file"
        studies.append(
            _Study(
                subject_id=subject_id,
                study_id=study_id,
                split=images[0].split,
                taken=max((image.taken for image in images if image.taken), default=None),
                images=_usable_images(subject_id, images, options, counts),
                sections=parse_sections(report) if report else {},
                problem=problem,
            )
        )
    return studies


def _usable_images(
    subject_id: int, images: list[ImageRow], options: MimicOptions, counts: Counter[str]
) -> tuple[ImageRow, ...]:
    """Return the images whose file exists and is not empty: PA, then AP, then lateral, then the others."""
    usable = []
    for image in images:
        size = _file_size(_image_path(options.image_root, subject_id, image)) if options.check_files else None
        if size == 0:
            counts["image files of 0 bytes"] += 1
        elif size == -1:
            counts["missing image files"] += 1
        else:
            usable.append(image)
    return tuple(sorted(usable, key=_view_rank))


def _is_frontal(image: ImageRow) -> bool:
    return image.view in FRONTAL


def _view_rank(image: ImageRow) -> tuple[int, tuple[int, float], str]:
    rank = _VIEW_ORDER.index(image.view) if image.view in _VIEW_ORDER else len(_VIEW_ORDER)
    return rank, image.taken or (0, 0.0), image.dicom_id


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _image_path(root: str, subject_id: int, image: ImageRow) -> str:
    return f"{root}/p{str(subject_id)[:2]}/p{subject_id}/s{image.study_id}/{image.dicom_id}.jpg"


def _records(
    study: _Study, studies: list[_Study], labels: dict[str, float] | None, options: MimicOptions
) -> list[dict[str, Any]]:
    if study.problem is not None:
        raise DroppedError(study.problem)
    answer = target_text(study.sections, options.report)
    groups = group_images(study.images, options.views, _is_frontal)
    earlier = _prior_study(study, studies, options.prior)
    prior, prior_images = _prior_content(earlier, options)
    context = context_lines(study.sections, options.report)
    records = []
    for number, group in enumerate(groups):
        identity: dict[str, Any] = {
            "id": f"s{study.study_id}" if len(groups) == 1 else f"s{study.study_id}-{number}",
            "subject_id": study.subject_id,
            "study_id": study.study_id,
            "dicom_id": [image.dicom_id for image in (*group, *prior_images)],
            "view": [image.view for image in (*group, *prior_images)],
            "split": study.split,
        }
        if earlier is not None:
            identity["prior_study_id"] = earlier.study_id
        if labels:
            identity["labels"] = labels
        paths = [_image_path(options.prefix, study.subject_id, image) for image in (*group, *prior_images)]
        records.append(build_record(identity, paths, user_text(len(group), context, prior, options.report), answer))
    return records


def _prior_study(study: _Study, studies: list[_Study], content: str) -> _Study | None:
    """Return the latest earlier study of the patient, in the same split, that has the `content` (one of `PRIORS`)."""
    if content == "none" or study.taken is None:
        return None
    earlier = [
        other
        for other in studies
        if other.taken is not None
        and other.taken < study.taken
        and other.split == study.split
        and other.problem is None
        and (content == "report" or other.frontal is not None)
    ]
    return max(earlier, key=lambda other: (other.taken, other.study_id), default=None)


def _prior_content(earlier: _Study | None, options: MimicOptions) -> tuple[Prior, tuple[ImageRow, ...]]:
    """Return what a record includes of the earlier study, and the images among it."""
    with_report = options.prior in ("report", "both")
    if earlier is None:
        return Prior(with_report=with_report), ()
    images = (earlier.frontal,) if options.prior != "report" and earlier.frontal is not None else ()
    report = prior_report(earlier.sections, options.report) if with_report else None
    return Prior(with_report=with_report, images=len(images), report=report), images

"""Turn one patient's images and reports into records: choice of views, prior study, reasons to drop."""

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
    context_lines,
    prior_report,
    sample,
    target_text,
    user_text,
)
from qwenvl.medical.reports import parse_sections

PRIORS = ("none", "report", "image", "both")
_VIEW_ORDER = (*FRONTAL, "LATERAL", "LL")


@dataclass(frozen=True)
class MimicOptions:
    """What records are made of: `image_root` holds p10 to p19, `prefix` is what stands for it in image paths."""

    image_root: str
    prefix: str
    report: ReportOptions = ReportOptions()
    views: str = "frontal"
    max_images: int = 4
    prior: str = "none"
    check_files: bool = True


@dataclass(frozen=True)
class Patient:
    """One patient's images and reports, and the labels of the studies that have any."""

    images: list[ImageRow]
    reports: PatientReports
    labels: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass
class Converted:
    """What some studies gave: records as (split, JSON), dropped studies as (subject, study, reason), counts."""

    studies: int = 0
    records: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[int, int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Study:
    """One study: its images that can be used, frontal ones first; `flaw` is why it cannot give a record."""

    subject_id: int
    study_id: int
    split: str
    taken: tuple[int, float] | None
    images: tuple[ImageRow, ...]
    sections: dict[str, str]
    flaw: str | None

    @property
    def frontal(self) -> ImageRow | None:
        return next((image for image in self.images if image.view in FRONTAL), None)


def convert_patients(task: tuple[list[Patient], MimicOptions]) -> Converted:
    """Convert some patients; each study gives its records or stands in `dropped` under one reason."""
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
            result.counts["studies with a prior study told"] += "prior_study_id" in records[0]
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
        flaw = None
        if len({image.split for image in images}) > 1:
            flaw = "images in more than one split"
        elif report is None:
            flaw = "report is empty or no UTF-8 text" if study_id in texts else "no report file"
        studies.append(
            _Study(
                subject_id=subject_id,
                study_id=study_id,
                split=images[0].split,
                taken=max((image.taken for image in images if image.taken), default=None),
                images=_usable(subject_id, images, options, counts),
                sections=parse_sections(report) if report else {},
                flaw=flaw,
            )
        )
    return studies


def _usable(
    subject_id: int, images: list[ImageRow], options: MimicOptions, counts: Counter[str]
) -> tuple[ImageRow, ...]:
    """Return the images whose file is there and not empty, PA before AP before lateral before the rest."""
    usable = []
    for image in images:
        size = _file_size(_image_path(options.image_root, subject_id, image)) if options.check_files else None
        if size == 0:
            counts["image files of 0 bytes"] += 1
        elif size == -1:
            counts["image files not there"] += 1
        else:
            usable.append(image)
    return tuple(sorted(usable, key=_view_rank))


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
    if study.flaw is not None:
        raise DroppedError(study.flaw)
    answer = target_text(study.sections, options.report)
    groups = _image_groups(study, options)
    earlier = _prior_study(study, studies, options.prior)
    prior, prior_images = _told(earlier, options)
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
        records.append(sample(identity, paths, user_text(len(group), context, prior, options.report), answer))
    return records


def _image_groups(study: _Study, options: MimicOptions) -> list[tuple[ImageRow, ...]]:
    """Return the images of each record that the study gives."""
    if not study.images:
        raise DroppedError("no usable image file")
    if options.views == "image":
        return [(image,) for image in study.images]
    if options.views == "study":
        return [study.images[: options.max_images]]
    if study.frontal is None:
        raise DroppedError("no frontal image")
    return [(study.frontal,)]


def _prior_study(study: _Study, studies: list[_Study], wanted: str) -> _Study | None:
    """Return the patient's latest earlier study of the same split that has what is wanted of it."""
    if wanted == "none" or study.taken is None:
        return None
    earlier = [
        other
        for other in studies
        if other.taken is not None
        and other.taken < study.taken
        and other.split == study.split
        and other.flaw is None
        and (wanted == "report" or other.frontal is not None)
    ]
    return max(earlier, key=lambda other: (other.taken, other.study_id), default=None)


def _told(earlier: _Study | None, options: MimicOptions) -> tuple[Prior, tuple[ImageRow, ...]]:
    """Return what is told of the earlier study, and its image if that is wanted."""
    with_report = options.prior in ("report", "both")
    if earlier is None:
        return Prior(wanted=with_report), ()
    images = (earlier.frontal,) if options.prior != "report" and earlier.frontal is not None else ()
    report = prior_report(earlier.sections, options.report) if with_report else None
    return Prior(wanted=with_report, images=len(images), report=report), images

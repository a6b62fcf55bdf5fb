"""Convert IU X-Ray (Open-i) to annotation files for training, validation and test."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.errors import UserError
from qwenvl.medical.openi.files import (
    OpeniReport,
    find_images,
    image_key,
    patient_number,
    read_projections,
    read_reports,
    unpack_images,
)
from qwenvl.medical.records import (
    DroppedError,
    Prior,
    ReportOptions,
    build_record,
    context_lines,
    target_text,
    user_text,
)
from qwenvl.medical.split_files import SplitFiles
from qwenvl.medical.views import ViewOptions, group_images

# In the output folder, for images that come as an archive.
IMAGE_FOLDER = "films"


@dataclass(frozen=True)
class OpeniOptions:
    """What the records of a report contain: the text of the conversation and the images."""

    report: ReportOptions
    views: ViewOptions = ViewOptions("study")


@dataclass(frozen=True)
class SplitShares:
    """How patients are split at random: the percentages for validation and test; the rest is for training.

    Raises:
        UserError: For percentages that are negative or leave no patient for training.
    """

    valid_percent: float = 10.0
    test_percent: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.valid_percent, self.test_percent) < 0 or not self.valid_percent + self.test_percent < 100:
            raise UserError(
                f"--valid_percent {self.valid_percent:g} and --test_percent {self.test_percent:g} leave nothing to "
                "train on; give percentages with a sum below 100"
            )


@dataclass(frozen=True)
class OpeniSource:
    """The published files: reports and images as archives or folders, and optionally the table of projections."""

    reports: str
    images: str
    projections: str | None = None


def convert_openi(
    source: OpeniSource, out: Path, options: OpeniOptions, shares: SplitShares, overwrite: bool
) -> list[tuple[str, int]]:
    """Write the records of each split into `out` and return a summary as rows; raises `UserError` for invalid input."""
    if options.views.kind == "frontal" and not source.projections:
        raise UserError(
            "Open-i does not include which images are frontal: give --projections, or --views study or image"
        )
    inputs = (source.reports, source.images, source.projections)
    with SplitFiles(out, "openi", ["report"], overwrite, inputs) as output:
        reports = read_reports(Path(source.reports))
        projections = read_projections(Path(source.projections)) if source.projections else {}
        images = Path(source.images)
        files = find_images(images if images.is_dir() else unpack_images(images, out / IMAGE_FOLDER))
        splits = split_patients({patient_number(report) for report in reports}, shares)
        converter = _Converter(files, projections, options)
        for report in reports:
            split = splits[patient_number(report)]
            try:
                records = converter.records(report)
            except DroppedError as reason:
                output.drop(report.name, reason)
                continue
            for record in records:
                output.write(split, json.dumps({**record, "split": split}, ensure_ascii=False))
        output.finish(len(reports), converter.final_counts())
    return output.summary()


def split_patients(patients: set[int], shares: SplitShares) -> dict[int, str]:
    """Assign patients to splits; the assignment does not depend on which reports are dropped later."""
    order = sorted(patients)
    random.Random(shares.seed).shuffle(order)
    valid = round(len(order) * shares.valid_percent / 100)
    test = round(len(order) * shares.test_percent / 100)
    names = ["validate"] * valid + ["test"] * test + ["train"] * (len(order) - valid - test)
    return dict(zip(order, names, strict=True))


class _Converter:
    """Turns reports into records and counts irregular images."""

    def __init__(self, files: dict[str, Path], projections: dict[tuple[str, str], str], options: OpeniOptions):
        self._files, self._projections, self._options = files, projections, options
        self._seen: set[str] = set()
        self._unreferenced = set(files)
        self._counts: Counter[str] = Counter()

    def records(self, report: OpeniReport) -> list[dict[str, Any]]:
        """Return the records of one report; raises `DroppedError`."""
        images = self._usable_images(report)
        if report.problem is not None:
            raise DroppedError(report.problem)
        if report.uid in self._seen:
            raise DroppedError("a second report with the same uId")
        self._seen.add(report.uid)
        options = self._options.report
        answer = target_text(report.sections, options)
        context = context_lines(report.sections, options)
        groups = group_images(images, self._options.views, self._is_frontal)
        records = []
        for number, group in enumerate(groups):
            identity = {
                "id": report.uid if len(groups) == 1 else f"{report.uid}-{number}",
                "subject_id": patient_number(report),
                "study_id": report.uid,
                "dicom_id": list(group),
                "view": [self._view(image) for image in group],
            }
            paths = [str(self._files[image].resolve()) for image in group]
            records.append(build_record(identity, paths, user_text(len(group), context, Prior(), options), answer))
        return records

    def final_counts(self) -> Counter[str]:
        """Return the counts of irregular images, those that no report refers to among them."""
        return self._counts + Counter({"images without a report": len(self._unreferenced)})

    def _usable_images(self, report: OpeniReport) -> list[str]:
        usable = []
        self._unreferenced.difference_update(report.images)
        for image in dict.fromkeys(report.images):
            if image not in self._files:
                self._counts["missing image files"] += 1
            elif self._files[image].stat().st_size == 0:
                self._counts["image files of 0 bytes"] += 1
            else:
                usable.append(image)
        # The sort is stable: frontal images first, otherwise in the order of the report.
        return sorted(usable, key=lambda image: not self._is_frontal(image))

    def _view(self, image: str) -> str:
        return self._projections.get(image_key(image), "")

    def _is_frontal(self, image: str) -> bool:
        return self._view(image) == "Frontal"

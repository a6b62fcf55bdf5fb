"""Convert IU X-Ray (Open-i) to train, valid and test files."""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.medical.openi.files import (
    OpeniReport,
    find_films,
    image_key,
    patient_number,
    read_projections,
    read_reports,
    unpack_films,
)
from qwenvl.medical.records import (
    DroppedError,
    Prior,
    ReportOptions,
    context_lines,
    sample,
    target_text,
    user_text,
)
from qwenvl.medical.split_files import SplitFiles


@dataclass(frozen=True)
class OpeniOptions:
    """What the records of a report are made of."""

    report: ReportOptions
    views: str = "study"
    max_images: int = 4


@dataclass(frozen=True)
class SplitShares:
    """How patients are split: the percentages for validation and test, the rest for training, and the seed."""

    valid_percent: float = 10.0
    test_percent: float = 20.0
    seed: int = 0


@dataclass(frozen=True)
class OpeniSource:
    """The published files: reports and images as archives or folders, and the table of projections if there is one."""

    reports: str
    images: str
    projections: str | None = None


def convert_openi(
    source: OpeniSource, out: Path, options: OpeniOptions, shares: SplitShares, overwrite: bool
) -> list[tuple[str, int]]:
    """Write the split files to `out` and return the rows of the summary; raises `UserError` for wrong input."""
    inputs = (source.reports, source.images, source.projections)
    with SplitFiles(out, "openi", ["report"], overwrite, inputs) as output:
        reports = read_reports(Path(source.reports))
        projections = read_projections(Path(source.projections)) if source.projections else {}
        images = Path(source.images)
        films = find_films(images if images.is_dir() else unpack_films(images, out / "films"))
        splits = split_patients({patient_number(report) for report in reports}, shares)
        converter = _Converter(films, projections, options)
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
    """Assign patients to the splits by seed and percentages, whatever is dropped of them later."""
    order = sorted(patients)
    random.Random(shares.seed).shuffle(order)
    valid = round(len(order) * shares.valid_percent / 100)
    test = round(len(order) * shares.test_percent / 100)
    names = ["validate"] * valid + ["test"] * test + ["train"] * (len(order) - valid - test)
    return dict(zip(order, names, strict=True))


class _Converter:
    """Turns reports into records; counts what was odd on the way."""

    def __init__(self, films: dict[str, Path], projections: dict[tuple[str, str], str], options: OpeniOptions):
        self._films, self._projections, self._options = films, projections, options
        self._seen: set[str] = set()
        self._unnamed = set(films)
        self._counts: Counter[str] = Counter()

    def records(self, report: OpeniReport) -> list[dict[str, Any]]:
        """Return the records of one report; raises `DroppedError`."""
        films = self._films_of(report)
        if report.flaw is not None:
            raise DroppedError(report.flaw)
        if report.uid in self._seen:
            raise DroppedError("a second report with the same uId")
        self._seen.add(report.uid)
        options = self._options.report
        answer = target_text(report.sections, options)
        context = context_lines(report.sections, options)
        groups = self._groups(films)
        records = []
        for number, group in enumerate(groups):
            identity = {
                "id": report.uid if len(groups) == 1 else f"{report.uid}-{number}",
                "subject_id": patient_number(report),
                "study_id": report.uid,
                "dicom_id": group,
                "view": [self._view(film) for film in group],
            }
            paths = [str(self._films[film].resolve()) for film in group]
            records.append(sample(identity, paths, user_text(len(group), context, Prior(), options), answer))
        return records

    def final_counts(self) -> Counter[str]:
        """Return what was odd in the reports that were converted, and how many films none of them names."""
        return self._counts + Counter({"films of no report": len(self._unnamed)})

    def _films_of(self, report: OpeniReport) -> list[str]:
        usable = []
        self._unnamed.difference_update(report.images)
        for film in dict.fromkeys(report.images):
            if film not in self._films:
                self._counts["film files not there"] += 1
            elif self._films[film].stat().st_size == 0:
                self._counts["film files of 0 bytes"] += 1
            else:
                usable.append(film)
        # A stable sort: frontal films first, otherwise in the report's order.
        return sorted(usable, key=lambda film: self._view(film) != "Frontal")

    def _view(self, film: str) -> str:
        return self._projections.get(image_key(film), "")

    def _groups(self, films: list[str]) -> list[list[str]]:
        if not films:
            raise DroppedError("no usable film file")
        if self._options.views == "image":
            return [[film] for film in films]
        if self._options.views == "study":
            return [films[: self._options.max_images]]
        if self._view(films[0]) != "Frontal":
            raise DroppedError("no frontal film")
        return [films[:1]]

"""Owns the command that turns IU X-Ray (Open-i) into train, valid and test files."""

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.errors import UserError
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
    add_report_options,
    context_lines,
    report_options,
    sample,
    target_text,
    user_text,
)
from qwenvl.medical.reports import OPENI_MARK
from qwenvl.medical.split_files import SplitFiles, add_output_options, max_images
from qwenvl.utils.cli import ToolParser, print_summary


@dataclass(frozen=True)
class OpeniOptions:
    """What the records of a report are made of."""

    report: ReportOptions
    views: str = "study"
    max_images: int = 4


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Turn IU X-Ray (Open-i) reports and films into training files. Originals are only read.")
    parser.add_argument("--reports", required=True, help="NLMCXR_reports.tgz, or the folder unpacked from it")
    parser.add_argument("--images", required=True, help="NLMCXR_png.tgz (unpacked to --out/films), or a folder of PNGs")
    parser.add_argument("--projections", help="indiana_projections.csv of the Kaggle edition, which tells the views")
    parser.add_argument("--valid_percent", type=float, default=10.0, help="share of the patients for validation")
    parser.add_argument("--test_percent", type=float, default=20.0, help="share of the patients for the test")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same split")
    add_output_options(parser, out="data/openi", views="study")
    add_report_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0. Raises `UserError` for what the user has to correct."""
    args = build_parser().parse_args(argv)
    options = _options(args)
    out = Path(args.out)
    inputs = (args.reports, args.images, args.projections)
    with SplitFiles(out, "openi", ["report"], args.overwrite, inputs) as output:
        reports = read_reports(Path(args.reports))
        projections = read_projections(Path(args.projections)) if args.projections else {}
        images = Path(args.images)
        films = find_films(images if images.is_dir() else unpack_films(images, out / "films"))
        splits = split_patients({patient_number(report) for report in reports}, args)
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
    print_summary(f"IU X-Ray -> {out}", output.summary())
    return 0


def split_patients(patients: set[int], args: argparse.Namespace) -> dict[int, str]:
    """Deal patients to the splits by `--seed` and the two percentages, whatever is dropped of them later."""
    order = sorted(patients)
    random.Random(args.seed).shuffle(order)
    valid = round(len(order) * args.valid_percent / 100)
    test = round(len(order) * args.test_percent / 100)
    names = ["validate"] * valid + ["test"] * test + ["train"] * (len(order) - valid - test)
    return dict(zip(order, names, strict=True))


def _options(args: argparse.Namespace) -> OpeniOptions:
    shares = (args.valid_percent, args.test_percent)
    if min(shares) < 0 or not sum(shares) < 100:
        raise UserError(f"--valid_percent {shares[0]:g} and --test_percent {shares[1]:g} leave nothing to train on")
    if args.views == "frontal" and not args.projections:
        raise UserError("Open-i does not say which films are frontal: give --projections, or --views study or image")
    return OpeniOptions(report_options(args, OPENI_MARK), args.views, max_images(args))


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

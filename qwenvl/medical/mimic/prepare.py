"""Owns the command that turns a MIMIC-CXR download into train, valid and test files; with help from its neighbours."""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from qwenvl.errors import UserError
from qwenvl.medical.mimic.llava_rad import convert_annotations
from qwenvl.medical.mimic.reports import ReportSource, open_reports
from qwenvl.medical.mimic.studies import PRIORS, Converted, MimicOptions, Patient, convert_patients
from qwenvl.medical.mimic.tables import LABEL_TABLES, MimicTables, find_table, read_tables
from qwenvl.medical.records import add_report_options, report_options
from qwenvl.medical.reports import MIMIC_MARK
from qwenvl.medical.split_files import SplitFiles, add_output_options, max_images
from qwenvl.utils.cli import ToolParser, default_workers, peak_memory_mib, positive_int, print_summary, progress
from qwenvl.utils.parallel import in_parallel

_PATIENTS_PER_TASK = 100


def build_parser() -> ToolParser:
    """Return the parser of this command."""
    parser = ToolParser("Turn MIMIC-CXR-JPG and its reports into training files. Originals are only read.")
    parser.add_argument("--jpg_root", required=True, help="folder of MIMIC-CXR-JPG: the CSVs and files/p10 to p19")
    parser.add_argument("--reports", help="mimic-cxr-reports.zip, or the folder that it was unpacked to")
    parser.add_argument("--llava_rad", nargs="+", metavar="JSON", help="LLaVA-Rad annotation files, instead of reports")
    parser.add_argument("--split_csv", help="the split table, if not in --jpg_root")
    parser.add_argument("--metadata_csv", help="the metadata table, if not in --jpg_root")
    parser.add_argument("--labels", choices=LABEL_TABLES, help="keep the labels of this table in each record")
    parser.add_argument("--labels_csv", help="the label table, if not in --jpg_root")
    parser.add_argument(
        "--prior",
        choices=PRIORS,
        default="none",
        help="tell the patient's last earlier study of the same split: its report, its frontal image, or both",
    )
    add_output_options(parser, out="data/mimic", views="frontal")
    add_report_options(parser)
    parser.add_argument("--paths", choices=("absolute", "relative"), default="absolute", help="relative to --jpg_root")
    parser.add_argument("--no_file_check", action="store_true", help="do not look whether each image file is there")
    parser.add_argument("--allow_outside", action="store_true", help="take --llava_rad images outside --jpg_root too")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="number of processes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Convert and print a summary; returns 0. Raises `UserError` for what the user has to correct."""
    started = time.monotonic()
    args = build_parser().parse_args(argv)
    options = _options(args)
    counts: Counter[str] = Counter()
    studies = 0
    tables = (args.split_csv, args.metadata_csv, args.labels_csv, *Path(args.jpg_root).glob("*.csv*"))
    inputs = (args.reports, *(args.llava_rad or ()), *tables)
    with SplitFiles(Path(args.out), "mimic", ["subject_id", "study_id"], args.overwrite, inputs) as output:
        for result in _from_annotations(args, options) if args.llava_rad else _from_reports(args, options):
            for split, record in result.records:
                output.write(split, record)
            for dropped in result.dropped:
                output.drop(*dropped)
            counts.update(result.counts)
            studies += result.studies
        output.finish(studies, counts)
    seconds = time.monotonic() - started
    speed = [("seconds", f"{seconds:.1f}"), ("studies a second", round(studies / max(seconds, 1e-9)))]
    print_summary(
        f"MIMIC-CXR -> {args.out}",
        [*output.summary(), *speed, ("peak memory of a process, MiB", peak_memory_mib())],
    )
    return 0


def _options(args: argparse.Namespace) -> MimicOptions:
    if bool(args.llava_rad) == bool(args.reports):
        raise UserError("give either --reports or --llava_rad: one of them has the texts")
    if args.llava_rad and (args.views == "study" or args.prior != "none" or args.target != "findings" or args.labels):
        raise UserError(
            "--llava_rad has findings of single images: give --reports for --views study, --prior, --labels or --target"
        )
    if args.llava_rad and (args.split_csv or args.metadata_csv):
        raise UserError("--llava_rad needs no tables: leave --split_csv and --metadata_csv out")
    if args.allow_outside and not args.llava_rad:
        raise UserError("--allow_outside is about paths in --llava_rad files: without them leave it out")
    if args.labels_csv and not args.labels:
        raise UserError("--labels_csv says where the table is, --labels which one it is: give both")
    root = Path(args.jpg_root).resolve()
    images = next((folder for folder in (root / "files", root) if any(folder.glob("p[0-9][0-9]"))), None)
    if images is None:
        found = ", ".join(sorted(path.name for path in root.glob("*"))[:5]) or "nothing"
        raise UserError(f"{root}: no folders p10 to p19 in it or in its folder files; found {found}")
    prefix = str(images) if args.paths == "absolute" else images.relative_to(root).as_posix()
    return MimicOptions(
        image_root=str(images),
        prefix=prefix,
        report=report_options(args, MIMIC_MARK),
        views=args.views,
        max_images=max_images(args),
        prior=args.prior,
        check_files=not args.no_file_check,
    )


def _from_annotations(args: argparse.Namespace, options: MimicOptions) -> Iterator[Converted]:
    paths = [Path(path) for path in args.llava_rad]
    yield from progress(convert_annotations(paths, options, args.allow_outside), "LLaVA-Rad", "part")


def _from_reports(args: argparse.Namespace, options: MimicOptions) -> Iterator[Converted]:
    reports = open_reports(Path(args.reports))
    tables = _tables(args)
    tasks = (([*patients], options) for patients in _grouped(_patients(tables, reports), _PATIENTS_PER_TASK))
    total = -(-len(tables.patients) // _PATIENTS_PER_TASK)
    yield from progress(in_parallel(convert_patients, tasks, args.workers), "MIMIC-CXR", "part", total)
    others = Counter({"reports without a study": reports.of_others(tables.patients)})
    yield Converted(counts=tables.counts + others)


def _tables(args: argparse.Namespace) -> MimicTables:
    root = Path(args.jpg_root)
    split = Path(args.split_csv) if args.split_csv else find_table(root, "split")
    metadata = Path(args.metadata_csv) if args.metadata_csv else find_table(root, "metadata")
    labels = None
    if args.labels:
        labels = Path(args.labels_csv) if args.labels_csv else find_table(root, args.labels)
    return read_tables(split, metadata, labels)


def _patients(tables: MimicTables, reports: ReportSource) -> Iterator[Patient]:
    for found in reports.of_patients(sorted(tables.patients)):
        images = tables.patients[found.subject_id]
        studies = {image.study_id for image in images} if tables.label_names else ()
        yield Patient(images, found, {study_id: tables.study_labels(study_id) for study_id in studies})


def _grouped(items: Iterable[Patient], size: int) -> Iterator[list[Patient]]:
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group

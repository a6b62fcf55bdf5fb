"""Measure training: samples and tokens per second, and peak memory, of the training command on synthetic X-rays."""

import argparse
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.utils.cli import ToolParser, cpu_name, positive_int
from qwenvl.utils.files import refuse_inputs

_SUITE_OPTIONS = ("shapes", "rows", "markdown", "minutes", "folder", "no_profile")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; other flags are passed to the training command."""
    argv = sys.argv[1:] if argv is None else argv
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--films", dest="num_images", type=positive_int, default=512, help="number of records, each with an X-ray"
    )
    parser.add_argument("--side", type=positive_int, default=672, help="longest side of an X-ray in pixels")
    parser.add_argument("--words", type=positive_int, default=100, help="approximate number of words in a report")
    parser.add_argument("--warmup", type=int, default=3, help="number of first steps that are not timed")
    parser.add_argument("--nproc_per_node", type=positive_int, default=1, help="number of processes, one per GPU")
    parser.add_argument("--reload", action="store_true", help="also load the saved model and compare its logits")
    parser.add_argument("--out", default=None, help="also write the result, with all losses, to this JSON file")
    _add_suite_options(parser)
    options, flags = parser.parse_known_args(argv)
    _refuse_options_without_effect(parser, options, flags)
    if options.suite:
        return run_suite(options)
    if options.reload and options.nproc_per_node > 1:
        raise UserError("--reload compares with the model of one process; leave out --nproc_per_node")
    if options.out:
        refuse_inputs([Path(options.out)], flags)
    # Imported here: PyTorch and Transformers take seconds, and --help needs neither.
    import torch
    import transformers

    from qwenvl.bench.synthetic_xrays import write_records, write_xrays
    from qwenvl.bench.train import read_steps, reload_difference, summarize, train_in_processes
    from qwenvl.train import train_qwen
    from qwenvl.utils.tables import format_table

    with tempfile.TemporaryDirectory() as scratch:
        dataset, output_dir = Path(scratch) / "xrays.json", Path(scratch) / "output"
        write_records(dataset, write_xrays(Path(scratch), options.num_images, options.side), options.words)
        flags += ["--dataset_use", str(dataset), "--report_to", "none", "--save_strategy", "no"]
        flags += ["--output_dir", str(output_dir)]
        if options.nproc_per_node > 1:
            train_in_processes(flags, options.nproc_per_node)
        else:
            trainer = train_qwen.train(flags)
        steps = read_steps(output_dir, options.warmup)
        result = summarize(steps, options.warmup)
        if options.reload:
            result |= reload_difference(trainer, output_dir)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    print(f"command: python tools/bench_train.py {shlex.join(argv)}")
    print(f"machine: {machine}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(format_table([tuple(result), tuple(f"{value:.4g}" for value in result.values())]))
    if options.out:
        result |= {"losses": [entry["loss"] for entry in steps]}
        Path(options.out).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0


def _add_suite_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("suite", "each recipe has flags of its own: see docs/benchmarks.md")
    group.add_argument(
        "--suite", action="store_true", help="measure the recipes of docs/benchmarks.md, with their aims"
    )
    group.add_argument("--shapes", default="4b,8b", help="shapes of the models, with commas between them")
    group.add_argument("--rows", default=None, help="names of recipes, with commas between them (all if left out)")
    group.add_argument("--markdown", default=None, help="also write the table to this Markdown file")
    group.add_argument("--minutes", type=float, default=1.0, help="minutes that each recipe is timed after its warm-up")
    group.add_argument("--folder", default=None, help="keep the models and data in this folder, and use them again")
    group.add_argument("--no_profile", action="store_true", help="leave out the runs that measure the GPU's idle time")


def _refuse_options_without_effect(
    parser: argparse.ArgumentParser, options: argparse.Namespace, flags: list[str]
) -> None:
    """Raise `UserError` for options of the suite without `--suite`, and for those of a single run with it."""
    of_one_run = [name for name in vars(options) if name not in (*_SUITE_OPTIONS, "suite", "out")]
    names = of_one_run if options.suite else _SUITE_OPTIONS
    given = [f"--{name}" for name in names if getattr(options, name) != parser.get_default(name)]
    if options.suite and (given or flags):
        raise UserError(f"--suite has its own flags for each recipe; leave out {[*given, *flags][0]}")
    if given:
        raise UserError(f"{given[0]} belongs to --suite; leave it out, or add --suite")
    if options.minutes <= 0:
        raise UserError(f"--minutes {options.minutes:g}: expected more than 0")


def run_suite(options: argparse.Namespace) -> int:
    """Run the suite; with `--out`, results of the same machine in that file are kept. Returns 1 if a row failed."""
    is_standin = options.shapes == "standin"  # for the tests
    shapes = ["4b", "8b"] if is_standin else options.shapes.split(",")
    # Imported here: PyTorch and Transformers take seconds, and --help needs neither.
    from qwenvl.bench import report, suite
    from qwenvl.bench.machine import measure_machine
    from qwenvl.bench.rows import select_rows
    from qwenvl.bench.workspace import Workspace
    from qwenvl.utils.logs import configure_logging

    rows = select_rows(options.rows, shapes)
    for path in filter(None, (options.out, options.markdown)):
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    configure_logging()
    machine = measure_machine()
    known = report.read_results(Path(options.out), machine) if options.out else []
    # As Ctrl-C does: a training that is under way is ended, too.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            workspace = Workspace(Path(options.folder or scratch).absolute(), is_standin=is_standin)
            for results in suite.run_suite(
                rows, workspace, machine, minutes=options.minutes, profiles=not options.no_profile, known=known
            ):
                # After each row: a call that is cut off keeps what it has measured.
                if options.out:
                    report.write_json(Path(options.out), machine, results)
                if options.markdown:
                    Path(options.markdown).write_text(report.format_markdown(machine, results), encoding="utf-8")
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(report.format_markdown(machine, results))
    names = [row.name for row in rows]
    return int(any(result.status == "failed" and result.name in names for result in results))


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

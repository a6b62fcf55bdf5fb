"""Measure the data path: images per second, the seconds to plan a large dataset, and the cost of its starts."""

import argparse
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path

from qwenvl.errors import exit_on_user_error
from qwenvl.utils.cli import ToolParser, cpu_name, default_workers, positive_int, print_summary


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print a table."""
    parser = ToolParser(__doc__)
    parser.add_argument(
        "--model_name_or_path", default=None, help="whose processor is used (default: a new stand-in model)"
    )
    parser.add_argument("--records", type=positive_int, default=100_000, help="records whose packs are planned")
    parser.add_argument("--words", type=positive_int, default=150, help="average number of words in a report")
    parser.add_argument("--model_max_length", type=positive_int, default=8192, help="maximum tokens per pack")
    parser.add_argument(
        "--starts",
        type=positive_int,
        default=None,
        help="measure only the first and second start of a run on this number of records (1000000: half an hour)",
    )
    parser.add_argument("--distinct", action="store_true", help="use a different image for each record of --starts")
    parser.add_argument(
        "--films", dest="num_images", type=positive_int, default=64, help="number of X-rays that are decoded"
    )
    parser.add_argument(
        "--sides", type=positive_int, nargs="+", default=[3056, 1024], help="longest sides of the X-rays"
    )
    parser.add_argument("--max_pixels", type=positive_int, default=28 * 28 * 576, help="maximum pixels after resizing")
    parser.add_argument("--workers", type=positive_int, default=default_workers(), help="DataLoader workers")
    options = parser.parse_args(argv)
    # Imported here: PyTorch and Transformers take seconds, and --help needs neither.
    import torch

    from qwenvl.bench.data import bench_loading, bench_planning, build_processor
    from qwenvl.data.encoding import RecordEncoder

    # One thread per process, as in DataLoader workers; otherwise "one core" would use all of them.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        if options.starts is not None:
            return print_starts(options, argv, scratch)
        processor = build_processor(options.model_name_or_path, scratch / "model")
        processor.image_processor.size = {"shortest_edge": 28 * 28 * 16, "longest_edge": options.max_pixels}
        encoder = RecordEncoder(processor)
        rows = []
        for side in options.sides:
            rows += bench_loading(processor, options, _create(scratch / str(side)), side)
        planning = bench_planning(encoder, options, _create(scratch / "planning"))
    print_conditions(argv)
    print_summary("From files to samples", rows)
    print_summary(f"From {options.records:,} records to packs", planning)
    return 0


def print_starts(options: argparse.Namespace, argv: list[str] | None, scratch: Path) -> int:
    """Measure the two starts and print a table."""
    from qwenvl.bench.data import find_model
    from qwenvl.bench.starts import bench_starts

    model = find_model(options.model_name_or_path, scratch / "model")
    data = _create(scratch / "starts")
    rows = bench_starts(model, options.starts, options.words, options.model_max_length, options.distinct, data)
    print_conditions(argv)
    print_summary(f"Starting on {options.starts:,} records", rows)
    return 0


def print_conditions(argv: list[str] | None) -> None:
    """Print the command, the machine and the versions."""
    import PIL
    import torch
    import transformers

    print(f"command: python tools/bench_data.py {shlex.join(sys.argv[1:] if argv is None else argv)}")
    print(f"machine: {cpu_name()}, {default_workers()} of {os.cpu_count()} cores")
    print(
        f"versions: Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Pillow {PIL.__version__}"
    )


def _create(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

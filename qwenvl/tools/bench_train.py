"""Measure training: samples and tokens per second, and peak memory, of the training command on synthetic X-rays."""

import json
import shlex
import sys
import tempfile
from pathlib import Path

from qwenvl.errors import UserError, exit_on_user_error
from qwenvl.utils.cli import ToolParser, cpu_name, positive_int
from qwenvl.utils.files import refuse_inputs


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
    options, flags = parser.parse_known_args(argv)
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


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Build a folder with a model of the size of Qwen3-VL-4B or 8B and random weights, to measure speed and memory."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.utils.cli import ToolParser


def main(argv: list[str] | None = None) -> int:
    """Build the folder and print its path."""
    parser = ToolParser(__doc__)
    parser.add_argument("folder", help="folder for the model")
    parser.add_argument("shape", choices=["4b", "8b"], help="size of the model")
    options = parser.parse_args(argv)
    # Imported here: PyTorch and Transformers take seconds, and --help needs neither.
    from qwenvl.bench.real_shape import build_real_shape

    print(build_real_shape(options.folder, options.shape))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

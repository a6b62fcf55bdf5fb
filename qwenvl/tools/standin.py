"""Build a small stand-in for a Qwen3-VL folder: all files of the real one, few and small layers, random weights."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.utils.cli import ToolParser


def main(argv: list[str] | None = None) -> int:
    """Build the folder and print its path."""
    parser = ToolParser(__doc__)
    parser.add_argument("folder", help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--moe", action="store_true", help="a mixture-of-experts model instead of a dense one")
    parser.add_argument("--thinking", action="store_true", help="the chat template of Thinking models, not of Instruct")
    parser.add_argument("--hidden_size", type=int, default=64, help="width of the language model, a multiple of 32")
    options = parser.parse_args(argv)
    # Imported here: PyTorch and Transformers take seconds, and --help needs neither.
    from qwenvl.bench.standin import build_standin

    print(build_standin(**vars(options)))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

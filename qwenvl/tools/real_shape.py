"""Build a folder with the true shape of Qwen3-VL-4B or 8B and random weights."""

import sys

from qwenvl.bench.real_shape import main
from qwenvl.errors import exit_on_user_error

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Measure training: samples and tokens a second, and peak memory, of the real training command."""

import sys

from qwenvl.bench.train import main
from qwenvl.errors import exit_on_user_error

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

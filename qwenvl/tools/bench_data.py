"""Measure the data path: images a second, the start of a large dataset."""

import sys

from qwenvl.bench.data import main
from qwenvl.errors import exit_on_user_error

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

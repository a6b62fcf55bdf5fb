"""Check the machine: what a training run needs, what is there, and what to do about what is missing."""

import sys

from qwenvl.check.environment import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

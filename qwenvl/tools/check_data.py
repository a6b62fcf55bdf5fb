"""Check every record of a run's datasets, and tell what the run would do with them."""

import sys

from qwenvl.check.data import main
from qwenvl.errors import exit_on_user_error

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Convert IU X-Ray (Open-i) to annotation files."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.medical.openi.prepare import main

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

"""Build a made-up MIMIC-CXR to try everything on."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.medical.mimic.synthetic import main

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

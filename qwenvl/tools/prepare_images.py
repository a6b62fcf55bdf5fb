"""Convert a folder of DICOM and 16-bit images to 8-bit PNG or JPEG files."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.medical.images import main

__all__ = ["main"]

if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

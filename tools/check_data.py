"""Run qwenvl/tools/check_data.py by path, with no PYTHONPATH."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwenvl.errors import exit_on_user_error  # noqa: E402

if __name__ == "__main__":
    with exit_on_user_error():
        from qwenvl.tools.check_data import main

        sys.exit(main())

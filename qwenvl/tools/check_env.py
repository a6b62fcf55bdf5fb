"""Check whether the machine has all that training needs, and print a remedy for what is missing."""

import argparse
import sys
from collections.abc import Callable

from qwenvl.check.environment import Check, format_checks, missing_parts, run_checks


def main(argv: list[str] | None = None, run: Callable[[], list[Check]] = run_checks) -> int:
    """Print the table and return 0, or 1 if something that training needs is missing."""
    argparse.ArgumentParser(description="Check whether this machine has all that training needs.").parse_args(argv)
    checks = run()
    print(format_checks(checks))
    missing = missing_parts(checks)
    print(f"\nmissing: {', '.join(missing)}" if missing else "\nready to train")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

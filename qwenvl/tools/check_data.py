"""Check every record of a run's datasets, and report what the run would do with them."""

import sys

from qwenvl.errors import exit_on_user_error


def main(argv: list[str] | None = None) -> int:
    """Check the data of a run and print the report; return 0, or 1 if there are problems."""
    # Imported here, where a library that is not installed is reported in one line.
    from qwenvl.tools.check_flags import parse_check_arguments

    flags = parse_check_arguments(argv)
    from qwenvl.check.data import check_data  # takes seconds, and `--help` is answered by now
    from qwenvl.utils.logs import configure_logging

    # Show what training logs, too: keys that are not read, records that become several samples.
    configure_logging()
    result = check_data(flags)
    for section in result.sections():
        print(section)
    return 1 if result.num_problems else 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

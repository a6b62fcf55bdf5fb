"""Check every record of a run's datasets, and report what the run would do with them."""

import sys

from qwenvl.errors import exit_on_user_error
from qwenvl.utils.startup import answer_help_without_collection


def main(argv: list[str] | None = None) -> int:
    """Check the data of a run and print the report; returns 0 where all is well and 1 where problems were found."""
    # Imported here, so that the command line is answered before the libraries of training are loaded.
    from qwenvl.check.arguments import parse_check_arguments

    flags = parse_check_arguments(argv)
    from qwenvl.check.data import check_data
    from qwenvl.utils.logs import configure_logging

    # Training logs the same: keys that are not read, thoughts that make several samples of a record.
    configure_logging()
    result = check_data(flags)
    for section in result.sections():
        print(section)
    return 1 if result.num_problems else 0


if __name__ == "__main__":
    answer_help_without_collection()
    with exit_on_user_error():
        sys.exit(main())

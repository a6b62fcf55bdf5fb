"""Owns the difference between a user's mistake and a defect of the program."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

USER_ERROR_EXIT_CODE = 2
# Processes of one run mostly meet the same mistake: the launcher ends the others once the first has told it.
_SECONDS_FOR_THE_FIRST_PROCESS = 3


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what was expected and what to do."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into one line on standard error and exit code 2; any other exception keeps its traceback."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_SECONDS_FOR_THE_FIRST_PROCESS)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(USER_ERROR_EXIT_CODE) from None

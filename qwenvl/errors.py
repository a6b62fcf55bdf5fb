"""Owns the difference between a user's mistake and a defect of the program."""

import contextlib
import sys
from collections.abc import Iterator

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what was expected and what to do."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into one line on standard error and exit code 2; any other exception keeps its traceback."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(USER_ERROR_EXIT_CODE) from None

"""Define the error for a user's mistake, and end a program with one line for it instead of a traceback."""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

USER_ERROR_EXIT_CODE = 2
# Set by this package's launcher for the processes that it starts: its process id.
LAUNCHER_VARIABLE = "QWENVL_LAUNCHER_PID"
_REPOSITORY = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = ("qwenvl", "demo", "tests")
# The processes of a run usually hit the same mistake: the launcher ends the others once the first has reported it.
_SECONDS_FOR_THE_FIRST_PROCESS = 3


class UserError(ValueError):
    """A mistake in what the user gave: `reason` says what was given, what was expected and what to do.

    `path` is the file that the mistake is about, if it is about one; the message is then "path: reason".
    """

    def __init__(self, reason: str, *, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = None if path is None else os.fspath(path)

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"

    def reason_for(self, path: str | os.PathLike[str]) -> str:
        """Return the message for a report that names `path` itself: an error about another file keeps that file."""
        return self.reason if self.path == os.fspath(path) else str(self)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` or a package that is not installed into one line on standard error and exit code 2.

    Any other exception keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        _exit_with(f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OWN_PACKAGES:
            raise
        _exit_with(_missing_package(error.name))


def exit_unless_installed(*modules: str) -> None:
    """End the program with one line and exit code 2 if one of these modules is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            _exit_with(_missing_package(name))


def exit_program_without(error: ModuleNotFoundError) -> None:
    """End `python -m PACKAGE` with one line if it needs a package that is not installed; else raise `error`.

    For a package's `__init__.py`, which Python runs before the program in its `__main__.py`.
    """
    # https://docs.python.org/3.11/library/sys.html#sys.argv: this is its value while the module is being located.
    if sys.argv[:1] != ["-m"] or error.name is None or error.name.partition(".")[0] in _OWN_PACKAGES:
        raise error
    _exit_with(_missing_package(error.name))


def _exit_with(line: str) -> None:
    """Write one line, in the first process of a run before the others, and exit with the code of a user's mistake."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_SECONDS_FOR_THE_FIRST_PROCESS)
    if not _report_to_torchrun(line):
        sys.stderr.write(f"{line}\n")
    raise SystemExit(USER_ERROR_EXIT_CODE) from None


def _report_to_torchrun(line: str) -> bool:
    """Pass a line to plain torchrun, which prints it below its own failure report; return False where it does not run.

    https://docs.pytorch.org/docs/2.11/elastic/errors.html: this is the file that its `record` writes.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or LAUNCHER_VARIABLE in os.environ:
        return False
    details = {"py_callstack": line, "timestamp": str(int(time.time()))}
    try:
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}), encoding="utf-8")
    except OSError:
        return False
    return True


def _missing_package(module: str) -> str:
    """Return what to do about a module that is not installed in this Python."""
    name = module.partition(".")[0]
    environment = _REPOSITORY / ".venv"
    if Path(sys.prefix).resolve() == environment.resolve():
        remedy = "install what is missing: bash scripts/quickstart.sh, or pip install -r requirements.txt"
    elif (environment / "bin/python").exists():
        remedy = f"activate the environment that has it: source {environment}/bin/activate"
    else:
        remedy = (
            "bash scripts/quickstart.sh makes .venv with all that is needed, then: source .venv/bin/activate (or pip "
            "install -r requirements.txt into this Python)"
        )
    return f"error: {name} is not installed in {sys.executable}; {remedy}"

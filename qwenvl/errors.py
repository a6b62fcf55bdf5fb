"""Tell a user's mistake apart from a defect of the program, and end a program with one line for the former."""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

USER_ERROR_EXIT_CODE = 2
# The launcher of this package names itself to the processes that it starts: its process id.
LAUNCHER_VARIABLE = "QWENVL_LAUNCHER_PID"
_REPOSITORY = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = ("qwenvl", "demo", "tests")
# Processes of one run mostly meet the same mistake: the launcher ends the others once the first has told it.
_SECONDS_FOR_THE_FIRST_PROCESS = 3


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what was expected and what to do."""


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
    """End the program with one line and exit code 2 if one of these modules is not there to be imported."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            _exit_with(_missing_package(name))


def exit_program_without(error: ModuleNotFoundError) -> None:
    """End `python -m PACKAGE` with one line if the package cannot be imported for want of another; else raise `error`.

    For a package's `__init__.py`, which Python runs before the program in its `__main__.py`.
    """
    # https://docs.python.org/3.11/library/sys.html#sys.argv: this is its value while the module is being located.
    if sys.argv[:1] != ["-m"] or error.name is None or error.name.partition(".")[0] in _OWN_PACKAGES:
        raise error
    _exit_with(_missing_package(error.name))


def _exit_with(line: str) -> None:
    """Tell one line, the first process of a run before the others, and end with the exit code of a user's mistake."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_SECONDS_FOR_THE_FIRST_PROCESS)
    if not _tell_torchrun(line):
        sys.stderr.write(f"{line}\n")
    raise SystemExit(USER_ERROR_EXIT_CODE) from None


def _tell_torchrun(line: str) -> bool:
    """Hand a line to plain torchrun, which prints it below its own report of the failure; False where there is none.

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
    """Return what to do about a module that is not installed in the Python that runs."""
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

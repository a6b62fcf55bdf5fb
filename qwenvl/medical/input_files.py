"""Refuse input files that cannot be read."""

from pathlib import Path

from qwenvl.data.media.files import file_flaw
from qwenvl.errors import UserError


def check_input_file(path: str | Path, kind: str, max_bytes: int | None = None, may_be_empty: bool = False) -> None:
    """Raise `UserError` for what is not a regular file of at most `max_bytes` bytes; `kind` names what is expected."""
    reason = file_flaw(str(path), kind, max_bytes, may_be_empty)
    if reason is not None:
        raise UserError(f"{path}: {reason}")

"""Decide which encoder files may run: those that the caller names, but not those that only a configuration names.

A checkpoint's `config.json` may name its encoder as `file.py:Class`. Importing that file runs it, so a name from a
configuration is refused until the user of this process allows the file: by naming it on the command line or in a call,
or by `trust_remote_code=True` when a model is loaded.
"""

from pathlib import Path

from qwenvl.errors import UserError

# An encoder's name that contains this is `path/to/file.py:CLASS`.
FILE_FORM = ".py:"
_TRUSTED_FILES: set[Path] = set()


def encoder_file(name: str) -> Path:
    """Return the absolute path of the file in a name like `path/to/file.py:CLASS`."""
    return Path(name.rpartition(":")[0]).expanduser().resolve()


def trust_encoder_file(name: str) -> None:
    """Allow this process to run the file in a name like `path/to/file.py:CLASS`; other names need no trust."""
    if FILE_FORM in name:
        _TRUSTED_FILES.add(encoder_file(name))


def refuse_untrusted_file(name: str) -> None:
    """Raise `UserError` if a name contains a file that is not allowed to run."""
    if FILE_FORM in name and encoder_file(name) not in _TRUSTED_FILES:
        raise UserError(
            f"the configuration names its encoder by code, {name}, and code that a model names runs only if it is "
            "allowed; read that file, then allow it: --trust_remote_code True in training, trust_remote_code=True in "
            "load_checkpoint and from_pretrained"
        )

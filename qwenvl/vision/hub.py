"""Owns what a user is told when weights are missing, gated or of another kind."""

from pathlib import Path

from qwenvl.errors import UserError

PATH_FLAG = "--custom_vision_pretrained_path"
_GATED = ("gated", "awaiting a review", "restricted")


def missing_weights(path: str, error: Exception) -> UserError:
    """Return the error for weights at `path` (folder, file or hub name) that could not be read: what to do next."""
    if Path(path).exists():
        return UserError(f"{path}: cannot be loaded as an encoder: {_first_line(error)}")
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        return UserError(f"{path}: no such folder or file; give {PATH_FLAG} a folder with config.json and its weights")
    get = f"`hf download {path} --local-dir FOLDER`, then give {PATH_FLAG} FOLDER"
    if any(word in str(error).lower() for word in _GATED):
        return UserError(
            f"{path} is gated: accept its terms at https://huggingface.co/{path}, log in with `hf auth login`, "
            f"and start again; or on a machine with access: {get}"
        )
    return UserError(f"{path}: not in the cache and not to be downloaded ({_first_line(error)}); get it with {get}")


def missing_package(name: str, extra: str) -> UserError:
    """Return the error for an optional package that is not installed."""
    return UserError(f"this encoder needs the package {name}, which is not installed: `pip install -e .[{extra}]`")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

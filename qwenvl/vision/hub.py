"""Find the files of encoders in folders and on the hub, and explain those that are missing, gated or invalid."""

import pickle
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from qwenvl.errors import UserError
from qwenvl.utils.json_text import read_json
from qwenvl.vision.encoder import EncoderCard

PATH_FLAG = "--custom_vision_pretrained_path"
LONGEST_REASON = 240
NOT_PLAIN = "the weights are damaged, or a pickle that would run code, which is not loaded; give a .safetensors file"
# Raised by the libraries for a file of weights that is truncated, of another kind or missing.
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)


def missing_weights(path: str, error: Exception, card: EncoderCard | None = None) -> UserError:
    """Return the error, with a remedy, for weights at `path` (folder, file or hub name) that could not be read.

    `card` is that of the encoder, if it has one: it names gates even if the hub is not reachable.
    """
    causes = list(_causes(error))
    if Path(path).exists():
        pickled = any(isinstance(cause, pickle.UnpicklingError) for cause in causes)
        return UserError(f"{path}: cannot be loaded as an encoder: {NOT_PLAIN if pickled else first_line(error)}")
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        return UserError(f"{path}: no such folder or file; give {PATH_FLAG} a folder with config.json and its weights")
    get = f"`hf download {path} --local-dir FOLDER`, then give {PATH_FLAG} FOLDER"
    accept = f"accept its terms at https://huggingface.co/{path}, log in with `hf auth login`"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UserError(f"{path} is gated: {accept}, and start again; or on a machine with access: {get}")
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"{path}: neither a folder here nor a repository on the hub (or a private one, which needs `hf auth "
            "login`); check the name"
        )
    failure = f"{path}: not in the cache, and the download failed ({first_line(error)})"
    # The cards of open encoders have the field's default.
    if card is not None and card.gate != EncoderCard.gate:
        return UserError(f"{failure}; it is gated: {accept} on a machine with access to the hub, and get it with {get}")
    return UserError(f"{failure}; get it with {get}")


def missing_package(name: str, extra: str) -> UserError:
    """Return the error for an optional package that is not installed."""
    return UserError(f'this encoder needs the package {name}, which is not installed: `pip install -e ".[{extra}]"`')


def find_file(path: str, names: Sequence[str]) -> Path | None:
    """Return the first file of these names in a folder or on the hub (downloaded or cached); None if there is none.

    Raises `UserError` for a hub repository that cannot be read.
    """
    if Path(path).is_dir():
        return next((Path(path) / name for name in names if (Path(path) / name).is_file()), None)
    unreachable = None
    for name in names:
        try:
            return Path(hf_hub_download(path, name))
        except LocalEntryNotFoundError as error:
            # A file of another name may be in the cache.
            unreachable = error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise missing_weights(path, error) from error
    if unreachable is not None:
        raise missing_weights(path, unreachable) from unreachable
    return None


def read_settings(path: str, name: str) -> dict:
    """Return the JSON object `name` in a folder, next to a file or on the hub; empty if there is none.

    Raises `UserError` for a file that does not hold a JSON object.
    """
    file = Path(path).with_name(name) if Path(path).is_file() else find_file(path, (name,))
    if file is None or not file.is_file():
        return {}
    return read_json(file, remedy="correct the file")


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, shortened if it is long."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], LONGEST_REASON) if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes: libraries wrap the hub's exceptions."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

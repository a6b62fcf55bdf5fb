"""Check the files of a checkpoint without a manifest, as far as they describe themselves."""

import json
import zipfile
from pathlib import Path

from qwenvl.utils.json_text import read_json

# A model needs one of each of these groups of files; a group is satisfied when all files of one alternative are there.
_PROCESSOR_FILES = (
    (("tokenizer_config.json",),),
    (("tokenizer.json",), ("vocab.json", "merges.txt")),
    (("processor_config.json",), ("preprocessor_config.json",)),
)
_RUN_FILES = (
    (("trainer_state.json",),),
    (("scheduler.pt",),),
    (("optimizer.pt",), ("latest",)),  # the file that names DeepSpeed's folder
)
_JSON_FILES = (
    "*config.json",
    "*.index.json",
    "tokenizer.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "run_arguments.json",
)
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_INDEX_NAME = "model.safetensors.index.json"


def find_structural_fault(folder: Path, *, for_resume: bool) -> str | None:
    """Return what is wrong with a checkpoint's files as far as it can be found without a manifest, or None.

    Finds missing files of the model, the processor and, `for_resume`, the run; invalid JSON and text; safetensors and
    PyTorch files that are truncated or whose checksums do not match.
    """
    return (
        _find_missing(folder, (*_weights(folder), *_PROCESSOR_FILES, *(_RUN_FILES if for_resume else ())))
        or _find_unreadable(folder, for_resume)
        or _find_missing_references(folder, for_resume)
    )


def find_broken_weights(folder: Path) -> str | None:
    """Return which of a model's safetensors files is truncated or missing, by its header or the index, or None."""
    if (folder / _INDEX_NAME).is_file():
        try:
            shards = set(read_json(folder / _INDEX_NAME)["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"{_INDEX_NAME} is damaged"
        if missing := sorted(name for name in shards if not (folder / name).is_file()):
            return f"{missing[0]} is missing"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            _check_safetensors(path)
        except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:
            return f"{path.name} is damaged ({(str(error) or 'empty').splitlines()[0]})"
    return None


def _weights(folder: Path) -> tuple[tuple[tuple[str, ...], ...], ...]:
    if (folder / "adapter_config.json").is_file() or (folder / "adapter_model.safetensors").is_file():
        return (("adapter_config.json",),), (("adapter_model.safetensors",),)
    return (("config.json",),), (("model.safetensors",), (_INDEX_NAME,))


def _find_missing(folder: Path, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> str | None:
    for alternatives in groups:
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            return f"{' or '.join(names[0] for names in alternatives)} is missing"
    return None


def _find_unreadable(folder: Path, for_resume: bool) -> str | None:
    """Parse each file of a known format; files of other names are the user's."""
    readers = dict.fromkeys(_JSON_FILES, _check_json)
    readers |= {"*.jinja": _check_text, "merges.txt": _check_text, "*.safetensors": _check_safetensors}
    if for_resume:
        readers |= {"trainer_state.json": _check_json, "latest": _check_text}
        readers |= dict.fromkeys(
            ("optimizer.pt", "scheduler.pt", "scaler.pt", "*.pth", "global_step*/*.pt"), _check_zip
        )
    for pattern, check in readers.items():
        for path in sorted(folder.glob(pattern)):
            try:
                check(path)
            except (ValueError, OSError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
                return f"{path.relative_to(folder)} is damaged ({(str(error) or 'empty').splitlines()[0]})"
    return None


def _find_missing_references(folder: Path, for_resume: bool) -> str | None:
    """Look for the files that others refer to."""

    def read(name: str) -> dict:
        return read_json(folder / name) if (folder / name).is_file() else {}

    for shard in sorted(set(read(_INDEX_NAME).get("weight_map", {}).values())):
        if not (folder / shard).is_file():
            return f"{shard} is missing"
    if not any((folder / name).is_file() for name in _TEMPLATE_FILES):
        named = ("tokenizer_config.json", "processor_config.json")
        if not any(read(name).get("chat_template") for name in named):
            return f"{_TEMPLATE_FILES[0]} is missing"
    arguments = read("run_arguments.json")
    encoder = arguments.get("custom_vision_encoder")
    if encoder is not None and not (folder / "config.json").is_file():
        return f"config.json, which describes the encoder {encoder} of that run, is missing"
    if for_resume and not list(folder.glob("rng_state*.pth")):
        return "rng_state.pth is missing"
    if for_resume and (folder / "latest").is_file():
        named = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
        states = list((folder / named).glob("*_optim_states.pt")) if named.isprintable() and named else []
        if len(states) < int(arguments.get("world_size", 1)):
            return f"{len(states)} of the {arguments.get('world_size', 1)} files *_optim_states.pt that `latest` names"
    return None


def _check_json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("not a JSON object")


def _check_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.strip() or "\0" in text:
        raise ValueError("not text")


def _check_safetensors(path: Path) -> None:
    # The format: https://github.com/huggingface/safetensors#format
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("not a safetensors file")
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != size:
        raise ValueError(f"{size:,} bytes, its header says {8 + length + max(ends, default=0):,}")


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it does not match its checksum")

"""Pack a dataset before training: read an annotation file, write a nested list whose inner lists are packs."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, get_type_hints

if not __package__:  # run by path: Python has put this folder on its path, not the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from qwenvl.utils.startup import answer_help_without_collection

if __name__ == "__main__":
    answer_help_without_collection()

from transformers import HfArgumentParser

from qwenvl.data.arguments import DataArguments
from qwenvl.errors import exit_on_user_error
from qwenvl.model.arguments import CUSTOM_VISION_FLAGS, ModelArguments
from qwenvl.utils.cli import OneLineErrors, positive_int, print_summary
from qwenvl.utils.logs import configure_logging

# Flags of training that affect the number of tokens of a sample: all data flags except these ...
_OTHER_DATA_FLAGS = ("dataset_use", "eval_dataset_use", "data_flatten", "data_packing")
# ... and all encoder flags except these.
_OTHER_VISION_FLAGS = ("vision_merger", "save_encoder")


class _PackParser(OneLineErrors, HfArgumentParser):
    """Transformers' argument parser, with errors in one line."""


def _flags_of(kind: type, names: list[str]) -> type:
    """Return a dataclass with these fields of another: types, defaults and help texts are those of training."""
    types, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    chosen = [
        (name, types[name], dataclasses.field(default=fields[name].default, metadata=fields[name].metadata))
        for name in names
    ]
    return dataclasses.make_dataclass(f"Pack{kind.__name__}", chosen)


def _names_of_data_flags() -> list[str]:
    return [field.name for field in dataclasses.fields(DataArguments) if field.name not in _OTHER_DATA_FLAGS]


def _names_of_model_flags() -> list[str]:
    vision = [name for name in CUSTOM_VISION_FLAGS if name not in _OTHER_VISION_FLAGS]
    return ["trust_remote_code", "custom_vision_encoder", *vision]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    groups = (_flags_of(ModelArguments, _names_of_model_flags()), _flags_of(DataArguments, _names_of_data_flags()))
    parser = _PackParser(groups, description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", required=True, help="the model that will be trained, for its processor")
    parser.add_argument("--dataset_use", required=True, help="one dataset: a registered name, or a .json/.jsonl file")
    parser.add_argument("--model_max_length", type=positive_int, required=True, help="maximum tokens per pack")
    parser.add_argument(
        "--out", default=None, help="output file, which can be trained on in its folder (default: beside the input)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.add_argument("--seed", type=int, default=42, help="seed of the order among samples of equal length")
    return parser.parse_args(argv)


def _choose(options: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def main(argv: list[str] | None = None) -> int:
    """Pack one dataset and print how full the packs are."""
    options = _parse(argv)
    from qwenvl.check.pack_file import PackOptions, pack_dataset  # takes seconds, and `--help` is answered by now

    # Show what training logs, too: keys that are not read, records that become several samples.
    configure_logging()
    model_args = ModelArguments(**_choose(options, ["model_name_or_path", *_names_of_model_flags()]))
    data_args = DataArguments(**_choose(options, ["dataset_use", *_names_of_data_flags()]))
    packing = PackOptions(options.model_max_length, options.seed, options.out, options.overwrite)
    print_summary("Packed", pack_dataset(model_args, data_args, packing))
    return 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())

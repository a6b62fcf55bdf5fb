"""What docs/medical.md tells people to type works: its first commands run, and every option that it names exists."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from qwenvl.data.annotations import BadSampleLedger, read_annotations
from qwenvl.tools import prepare_images, prepare_mimic_cxr, prepare_openi, synthetic_mimic
from qwenvl.tools.check_arguments import parse_check_arguments
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments

DOC = (Path(__file__).resolve().parents[2] / "docs" / "medical.md").read_text(encoding="utf-8")
PARSERS = {module.__name__.rpartition(".")[2]: module for module in (prepare_images, prepare_mimic_cxr, prepare_openi)}


def _commands(name: str) -> list[list[str]]:
    """Return the arguments of each command line in the document that runs a tool."""
    text = re.sub(r"\\\n\s*", " ", DOC)
    lines = re.findall(rf"^python (?:tools/|-m qwenvl\.tools\.){name}(?:\.py)? (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_of_the_document_is_understood(name: str):
    assert _commands(name)
    for arguments in _commands(name):
        PARSERS[name].build_parser().parse_args(arguments)


def test_every_option_of_the_document_exists():
    known = {option for module in PARSERS.values() for option in module.build_parser().format_help().split()}
    known = {option.strip("[],") for option in known} | {"--studies", "--film_size", "--help"}
    groups = (ModelArguments, DataArguments, TrainingArguments)
    known |= {f"--{field.name}" for group in groups for field in dataclasses.fields(group)}
    named = set(re.findall(r"`(--\w+)", DOC))
    assert named and named <= known


def test_the_first_two_commands_give_a_set_that_can_be_trained_on(tmp_path: Path):
    (build,), (convert, *_) = _commands("synthetic_mimic"), _commands("prepare_mimic_cxr")
    build[build.index("--studies") + 1] = "40"
    place = {"/tmp/mimic": str(tmp_path / "mimic"), "/tmp/mimic_json": str(tmp_path / "json")}
    assert synthetic_mimic.main([place.get(argument, argument) for argument in [*build, "--film_size", "16"]]) == 0
    arguments = [place.get(argument, argument) for argument in convert]
    assert prepare_mimic_cxr.main([*arguments, "--workers", "1"]) == 0
    assert read_annotations(str(tmp_path / "json" / "mimic_train.json"), "", BadSampleLedger()).records


def test_the_check_of_the_document_is_understood():
    (arguments,) = _commands("check_data")
    assert parse_check_arguments(arguments).data.eval_dataset_use == "mimic_valid"

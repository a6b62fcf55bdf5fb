"""Tests of the commands in docs/medical.md: the first ones run, and every option exists."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path

import pytest

from qwenvl.data.annotations import BadSampleTracker, read_annotations
from qwenvl.tools import prepare_images, prepare_mimic_cxr, prepare_openi, synthetic_mimic
from qwenvl.tools.check_flags import parse_check_arguments
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments

DOC = (Path(__file__).resolve().parents[2] / "docs" / "medical.md").read_text(encoding="utf-8")
PARSERS = {"prepare_images": prepare_images, "prepare_mimic_cxr": prepare_mimic_cxr, "prepare_openi": prepare_openi}


def _commands(name: str) -> list[list[str]]:
    """Return the arguments of each command line in the document that runs a tool."""
    text = re.sub(r"\\\n\s*", " ", DOC)
    lines = re.findall(rf"^python (?:tools/|-m qwenvl\.tools\.){name}(?:\.py)? (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_of_the_document_is_parsed(name: str):
    assert _commands(name)
    for arguments in _commands(name):
        PARSERS[name].build_parser().parse_args(arguments)


def test_every_option_of_the_document_exists():
    known = {option for module in PARSERS.values() for option in module.build_parser().format_help().split()}
    known = {option.strip("[],") for option in known} | {"--studies", "--film_size", "--help", "--processes"}
    groups = (ModelArguments, DataArguments, TrainingArguments)
    known |= {f"--{field.name}" for group in groups for field in dataclasses.fields(group)}
    named = set(re.findall(r"`(--\w+)", DOC))
    assert named and named <= known


def test_the_first_two_commands_give_a_dataset_that_can_be_read(tmp_path: Path):
    (build,), (convert, *_) = _commands("synthetic_mimic"), _commands("prepare_mimic_cxr")
    build[build.index("--studies") + 1] = "40"
    folders = {"/tmp/mimic": str(tmp_path / "mimic"), "/tmp/mimic_json": str(tmp_path / "json")}
    assert synthetic_mimic.main([folders.get(argument, argument) for argument in [*build, "--film_size", "16"]]) == 0
    arguments = [folders.get(argument, argument) for argument in convert]
    assert prepare_mimic_cxr.main([*arguments, "--workers", "1"]) == 0
    assert read_annotations(str(tmp_path / "json" / "mimic_train.json"), "", BadSampleTracker()).records


def test_the_check_of_the_document_is_parsed():
    (arguments,) = _commands("check_data")
    flags = parse_check_arguments(arguments)
    assert flags.data.eval_dataset_use == "mimic_valid"
    script = (Path(__file__).resolve().parents[2] / "scripts" / "train.sh").read_text(encoding="utf-8")
    assert flags.training.samples_per_step == int(re.search(r"SAMPLES_PER_STEP=(\d+)", script)[1])


def test_the_check_of_the_document_has_the_flags_of_the_preset_that_decide_steps_and_memory():
    (arguments,) = _commands("check_data")
    given = {name.removeprefix("--"): value for name, value in itertools.pairwise(arguments) if name.startswith("--")}
    script = (Path(__file__).resolve().parents[2] / "scripts" / "train.sh").read_text(encoding="utf-8")
    preset = dict(re.findall(r"^[A-Z_]+ +(\w+) +(\S+)$", script, re.MULTILINE))
    assert {name: preset[name] for name in given if name in preset} == {
        name: value for name, value in given.items() if name in preset
    }
    decisive = [name for name in preset if name.startswith(("tune_mm", "lora_", "data_", "gradient_", "model_max"))]
    fallbacks = {"tune_mm_vision", "lora_dropout"}
    assert {*decisive, "per_device_train_batch_size"} - fallbacks <= given.keys()

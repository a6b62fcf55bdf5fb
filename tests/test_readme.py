import dataclasses
import re
from pathlib import Path

import pytest
from transformers import TrainingArguments as TransformersArguments

from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
from tests.readme_tree import END, README, REPOSITORY, START, file_tree

TEXT = README.read_text(encoding="utf-8")
OWN_FLAGS = sorted(
    {field.name for group in (ModelArguments, DataArguments, TrainingArguments) for field in dataclasses.fields(group)}
    - {field.name for field in dataclasses.fields(TransformersArguments)}
)


def test_the_file_tree_is_the_tree_on_disk() -> None:
    assert START + file_tree() + END in TEXT, "run: python -m tests.readme_tree"


@pytest.mark.parametrize("flag", OWN_FLAGS)
def test_every_flag_of_ours_is_in_a_table(flag: str) -> None:
    assert re.search(rf"^\|.*`--{flag}`", TEXT, re.MULTILINE)


@pytest.mark.parametrize("document", [README, *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_every_file_that_a_document_links_or_runs_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    named = re.findall(r"\b((?:scripts|tools|docs|demo|qwenvl)/[\w/]+\.(?:sh|py|md|json|ipynb))\b", text)
    assert linked or named
    missing = [path for path in linked if not (document.parent / path).exists()]
    missing += [path for path in named if not (REPOSITORY / path).exists()]
    assert not missing

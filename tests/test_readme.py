import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from transformers import TrainingArguments as TransformersArguments

from qwenvl.data.pixel_limits import OFFICIAL_PIXEL_LIMITS
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
from qwenvl.train.flag_rules import FLAG_RULES, Acts, Needs, Refused

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
TEXT = README.read_text(encoding="utf-8")
OWN_FLAGS = sorted(
    {field.name for group in (ModelArguments, DataArguments, TrainingArguments) for field in dataclasses.fields(group)}
    - {field.name for field in dataclasses.fields(TransformersArguments)}
)


def test_the_file_tree_is_the_tree_on_disk() -> None:
    tree = re.search(r"^## Files\n\n```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1]
    parents: list[str] = []
    listed = set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        parents[len(indent) // 2 :] = [name]
        listed.add("".join(parents))
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    folders = {path.split("/")[0] + "/" for path in tracked.splitlines() if "/" in path and not path.startswith(".")}
    rooms = {f"{Path(path).parent}/" for path in tracked.splitlines() if re.match(r"qwenvl/.*\.py$", path)}

    assert {name for name in listed if name.endswith("/")} == folders | rooms
    assert all((REPOSITORY / name).exists() for name in listed)


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(TEXT.splitlines()) <= 240


def test_the_code_that_uses_a_model_runs(
    standin: Path, media: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = re.search(r"^## Use the model\n\n```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1]
    monkeypatch.chdir(media)
    for name, value in (("output/mimic_4b", str(standin)), ("frontal.png", "red.png"), ("=256", "=4")):
        assert name in code
        code = code.replace(name, value)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_numbers_of_transformers_flags_that_act_or_are_refused_are_true() -> None:
    rules = [type(FLAG_RULES[field.name]) for field in dataclasses.fields(TransformersArguments)]
    counts = [rules.count(kind) for kind in (Acts, Needs, Refused)]
    written = re.search(r"flags as well: (\d+)\sact, (\d+) act only with another flag, and (\d+) are refused", TEXT)
    assert counts == [int(number) for number in written.groups()]


@pytest.mark.parametrize("flag", OWN_FLAGS)
def test_every_flag_of_ours_is_in_a_table(flag: str) -> None:
    assert re.search(rf"^\|.*`--{flag}`", TEXT, re.MULTILINE)


def test_every_flag_of_ours_has_a_help_text() -> None:
    fields = [
        field for group in (ModelArguments, DataArguments, TrainingArguments) for field in dataclasses.fields(group)
    ]
    assert [field.name for field in fields if field.name in OWN_FLAGS and not field.metadata.get("help")] == []


def test_the_defaults_in_the_table_are_those_of_the_flags() -> None:
    groups = (ModelArguments, DataArguments, TrainingArguments)
    defaults = {field.name: field.default for group in groups for field in dataclasses.fields(group)}
    defaults |= OFFICIAL_PIXEL_LIMITS | {"media_cache_dir": "~/.cache/qwenvl", "learning_rate": "5e-5"}
    assert TransformersArguments.learning_rate == float("5e-5")
    shown = {}
    for flags, values in re.findall(r"^\| (`--[^|]+`) \| ([^|]*?) ?\|", TEXT, re.MULTILINE):
        names, texts = re.findall(r"`--(\w+)`", flags), values.split(", ")
        shown |= dict(zip(names, texts * len(names) if len(texts) == 1 else texts, strict=True))
    assert set(OWN_FLAGS) <= set(shown)
    for name, text in shown.items():
        value = defaults[name]
        assert (name, text) == (name, f"`{value}`") or (not text.startswith("`") and value in (None, ""))


@pytest.mark.parametrize("document", [README, REPOSITORY / "docs/troubleshooting.md"], ids=lambda path: path.name)
def test_every_message_under_troubleshooting_is_one_that_the_code_has(document: Path) -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "qwenvl").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a message in two lines of code
    rows = document.read_text(encoding="utf-8").partition("what you see")[2].partition("\n## ")[0].splitlines()
    quoted = [message for row in rows[2:] for message in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(quoted) > 2
    pieces = [piece.strip() for message in quoted for piece in re.split(r"\.\.\.|\bN\b", message)]
    assert [piece for piece in pieces if piece not in code] == []


@pytest.mark.parametrize("document", [README, *sorted((REPOSITORY / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_every_file_that_a_document_links_or_runs_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    named = re.findall(r"\b((?:scripts|tools|docs|demo|qwenvl)/[\w/]+\.(?:sh|py|md|json|ipynb))\b", text)
    assert linked or named
    missing = [path for path in linked if not (document.parent / path).exists()]
    missing += [path for path in named if not (REPOSITORY / path).exists()]
    assert not missing

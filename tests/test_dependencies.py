"""What the code imports is what requirements.txt and the extras of pyproject.toml declare, pinned as installed."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"qwenvl", "demo", "tests"}
# Distributions whose module has another name.
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
NEVER_IMPORTED = {
    "tensorboard": "torch.utils.tensorboard writes its files",
    "pylibjpeg": "pydicom decodes JPEG files with it where it is installed",
    "flash-attn": "Transformers loads it where it is installed",
    "pytest-xdist": "runs the tests in several processes",
    "import-linter": "a command",
    "ruff": "a command",
}


def _requirements(lines: list[str]) -> dict[str, str]:
    """Return the version specifier of each distribution by its name."""
    matches = (re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(.*)", line.partition(";")[0].strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in matches if match}


REQUIRED = _requirements((REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines())
EXTRAS = {name: _requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}
DECLARED = REQUIRED | {name: version for extra in EXTRAS.values() for name, version in extra.items()}


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module]
    # Optional packages: importlib.import_module("name")
    if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "import_module":
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def _imported_modules(*folders: str) -> set[str]:
    """Return the top-level modules of other people that the Python files below these folders import."""
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    names = {name.partition(".")[0] for tree in trees for node in ast.walk(tree) for name in _imported_names(node)}
    # Test files import those beside them.
    return names - OWN - {path.stem for path in files} - set(sys.stdlib_module_names)


def _modules(distributions: dict[str, str]) -> set[str]:
    return {MODULES.get(name, name.replace("-", "_")) for name in distributions}


def test_everything_imported_is_declared() -> None:
    assert _imported_modules("qwenvl", "tools") - _modules(DECLARED) == set()
    assert _imported_modules("demo") - _modules(REQUIRED | EXTRAS["demo"]) == set()
    assert _imported_modules("tests") - _modules(REQUIRED | EXTRAS["demo"] | EXTRAS["dev"]) == set()


def test_everything_declared_is_imported_or_has_a_reason() -> None:
    imported = _imported_modules("qwenvl", "demo", "tools", "tests")
    unused = {name for name in DECLARED if not _modules({name: ""}) & imported}
    assert unused - set(NEVER_IMPORTED) == set()


@pytest.mark.parametrize("name", sorted(set(DECLARED) - set(EXTRAS["flash"])))
def test_a_distribution_is_pinned_to_one_version_everywhere(name: str) -> None:
    pins = {group[name] for group in (REQUIRED, *EXTRAS.values()) if name in group}
    assert len(pins) == 1 and next(iter(pins)).startswith("==")


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_the_pin_is_the_installed_version(name: str) -> None:
    assert REQUIRED[name] == f"=={metadata.version(name)}"

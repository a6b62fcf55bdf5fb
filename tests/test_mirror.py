"""The tests mirror the package: each module has a test file of its name, and each test file tests something there."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = REPOSITORY / "qwenvl", REPOSITORY / "tests"


# Folders of tests that are of no room of the package.
OTHER_FOLDERS = ("demo", "gpu", "reliability")


def _modules() -> list[Path]:
    """Return the modules of the package relative to its folder; a package's `__init__` is tested with its modules."""
    return [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def _test_file(module: Path) -> Path:
    return TESTS / module.parent / f"test_{module.name}"


def _has_a_test(path: Path) -> bool:
    return path.is_file() and "\ndef test_" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", _modules(), ids=str)
def test_each_module_has_a_test_file_of_its_name(module: Path) -> None:
    assert _has_a_test(_test_file(module)), f"write tests of {module} into {_test_file(module)}"


def test_each_folder_of_tests_is_a_folder_of_the_repository() -> None:
    folders = [path.relative_to(TESTS) for path in TESTS.rglob("*") if path.is_dir() and any(path.glob("test_*.py"))]
    assert not [each for each in folders if not (PACKAGE / each).is_dir() and str(each) not in OTHER_FOLDERS]

"""The tests mirror the package: each module has a test file of its name, and each test file tests something there."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = REPOSITORY / "qwenvl", REPOSITORY / "tests"
# Modules without a test file of their name, with what tests them instead. This list may only become shorter.
EXEMPT = {
    "check/pack_file.py": "tests/tools/test_pack_data.py",
    "data/arguments.py": "read by the tests of tests/data that load records",
    "data/bad_samples.py": "read by the tests of tests/data that load records",
    "data/dialects/forms.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/media.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/neutral.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/objects.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/parts.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/tools.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/turns.py": "tests/data/test_dialects.py reads every dialect",
    "data/dialects/unread.py": "tests/data/test_dialects.py reads every dialect",
    "data/media/files.py": "read by the tests of tests/data that load records",
    "data/media/tiff_layouts.py": "read by the tests of tests/data that load records",
    "data/records.py": "read by the tests of tests/data that load records",
    "data/rows.py": "read by the tests of tests/data that load records",
    "data/turn_checks.py": "read by the tests of tests/data that load records",
    "medical/convert_image.py": "tests/medical/test_images.py and tests/medical/openi/test_prepare.py run it",
    "medical/openi/files.py": "tests/medical/test_images.py and tests/medical/openi/test_prepare.py run it",
    "model/build.py": "built by tests/train/test_custom_vision.py and tests/model/test_base_files.py",
    "model/custom_vision.py": "built by tests/train/test_custom_vision.py and tests/model/test_base_files.py",
    "tools/prepare_images.py": "tests/medical/test_images.py runs the command",
    "train/prepare.py": "trained by tests/train/test_train_qwen.py",
    "train/run.py": "trained by tests/train/test_train_qwen.py",
    "train/trainer.py": "trained by tests/train/test_train_qwen.py",
    "vision/__main__.py": "tests/vision/cache/test_store.py",
    "vision/cache/filling.py": "tests/vision/cache/test_store.py",
    "vision/encoders/aimv2.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/biomedclip.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/c_radio.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/clip.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/dinov2.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/dinov3.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/published.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/rad_dino.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/siglip.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/siglip2.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/timm_models.py": "tests/vision/test_published.py and test_hub.py",
    "vision/encoders/transformers_models.py": "tests/vision/test_published.py and test_hub.py",
}


def _modules() -> list[Path]:
    """Return the modules of the package relative to its folder; a package's `__init__` is tested with its modules."""
    return [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def _test_file(module: Path) -> Path:
    return TESTS / module.parent / f"test_{module.name}"


def _has_a_test(path: Path) -> bool:
    return path.is_file() and "\ndef test_" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", _modules(), ids=str)
def test_each_module_has_a_test_file_of_its_name(module: Path) -> None:
    if str(module) not in EXEMPT:
        assert _has_a_test(_test_file(module)), f"write tests of {module} into {_test_file(module)}"


def test_no_exemption_is_out_of_date() -> None:
    outdated = [name for name in EXEMPT if not (PACKAGE / name).is_file() or _has_a_test(_test_file(Path(name)))]
    assert not outdated, "take these modules out of EXEMPT: they have tests of their name, or are gone"


def test_each_folder_of_tests_is_a_folder_of_the_repository() -> None:
    folders = [path.relative_to(TESTS) for path in TESTS.rglob("*") if path.is_dir() and any(path.glob("test_*.py"))]
    assert not [
        folder for folder in folders if not (PACKAGE / folder).is_dir() and str(folder) not in ("demo", "reliability")
    ]

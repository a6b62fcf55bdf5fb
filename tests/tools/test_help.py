"""Tests of the help of the tools: it is printed without importing PyTorch, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import runpy, sys
sys.argv = ["{tool}", "--help"]
try:
    runpy.run_module("qwenvl.tools.{tool}", run_name="__main__")
finally:
    print("imported", *sorted({{"torch", "transformers", "transformers.training_args"}} & set(sys.modules)))
"""
TOOLS = [
    "bench_data",
    "bench_train",
    "check_env",
    "prepare_images",
    "prepare_mimic_cxr",
    "prepare_openi",
    "real_shape",
    "standin",
]


@pytest.mark.parametrize(
    ("tool", "imported"), [*((tool, "imported") for tool in TOOLS), ("check_data", "imported transformers")]
)
def test_help_imports_no_torch(tool: str, imported: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(tool=tool)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == imported


@pytest.mark.parametrize(
    "way", [["-m", "qwenvl.tools.pack_data"], ["qwenvl/tools/pack_data.py"], ["tools/pack_data.py"]]
)
def test_pack_data_is_run_by_module_and_by_path(way: list[str]) -> None:
    done = subprocess.run([sys.executable, *way], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the following arguments are required")


def test_every_tool_runs_as_a_module() -> None:
    shared = ("__init__.py", "check_flags.py", "report_flags.py")
    modules = [path for path in (REPOSITORY / "qwenvl" / "tools").glob("*.py") if path.name not in shared]
    assert not [path.name for path in modules if '__name__ == "__main__"' not in path.read_text(encoding="utf-8")]
    assert {path.stem for path in modules} - {path.stem for path in (REPOSITORY / "tools").glob("*.py")} == {
        "synthetic_mimic"
    }

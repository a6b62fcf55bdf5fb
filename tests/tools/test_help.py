"""The help of these tools is printed without importing PyTorch or Transformers, which take seconds."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from qwenvl.tools.{tool} import main
try:
    main(["--help"])
finally:
    print("imported", *sorted({{"torch", "transformers"}} & set(sys.modules)))
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


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_no_torch(tool: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(tool=tool)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported"


def test_the_shapes_offered_are_those_that_can_be_built() -> None:
    parser_source = importlib.import_module("qwenvl.tools.real_shape")
    shapes = importlib.import_module("qwenvl.bench.real_shape").SHAPES
    with pytest.raises(ValueError, match=", ".join(f"'?{shape}'?" for shape in sorted(shapes))):
        parser_source.main(["folder", "none"])

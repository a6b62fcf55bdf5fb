"""Command lines are parsed in qwenvl/tools, not in the rooms that the commands call."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "qwenvl"
PARSERS = {"argparse", "ArgumentParser", "FlagParser", "HfArgumentParser", "OneLineErrors", "ToolParser"}


@pytest.mark.parametrize("room", ["check", "medical"])
def test_the_room_has_no_parser(room: str):
    modules = sorted((PACKAGE / room).rglob("*.py"))
    assert modules
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        assert not names & PARSERS, module

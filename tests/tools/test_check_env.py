"""Tests of the command of the machine check: its table, its exit code, and that it needs nothing installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl.check.environment import MISSING, OK, OPTIONAL, Check
from qwenvl.tools import check_env

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (OPTIONAL, 0), (MISSING, 1)])
def test_exit_code_tells_whether_something_needed_is_missing(status: str, code: int, capsys: pytest.CaptureFixture):
    assert check_env.main([], lambda: [Check("thing", status, "what is there", "what to do")]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["thing", status, "what", "is", "there"]
    assert lines[1].strip() == "-> what to do"
    assert lines[-1] == ("missing: thing" if code else "ready to train")


def test_it_runs_by_path_from_any_folder_and_covers_every_part(tmp_path: Path):
    answer = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/check_env.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert answer.returncode == ("\nmissing: " in answer.stdout), answer.stderr
    for name in ("Python", "packages", "PyTorch", "NVIDIA driver", "GPU", "attention", "DeepSpeed", "video", "shared"):
        assert any(line.startswith(name) for line in answer.stdout.splitlines()), name


def test_it_runs_with_nothing_installed():
    answer = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; from qwenvl.tools import check_env; sys.exit(check_env.main([]))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1, answer.stderr
    assert "missing: packages, PyTorch" in answer.stdout

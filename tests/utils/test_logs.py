"""Tests of what commands tell on standard error: each line once, and nothing of what libraries will rename."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import logging, warnings
from qwenvl.utils.logs import configure_logging
configure_logging()
logging.getLogger("qwenvl.data").info("read")
logging.getLogger("huggingface_hub.utils").warning("again in 1s")
warnings.warn_explicit("renamed", FutureWarning, "x.py", 1, module="transformers.modeling_utils")
"""


def test_each_line_is_told_once_and_what_libraries_rename_is_not():
    told = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True).stderr
    assert told.count("read") == 1 and told.count("again in 1s") == 1
    assert "renamed" not in told

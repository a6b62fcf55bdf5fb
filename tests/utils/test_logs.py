"""Tests of the logging of commands: each message once, and no deprecations inside of libraries."""

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


def test_each_message_appears_once_and_deprecations_inside_of_libraries_do_not():
    errors = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True).stderr
    assert errors.count("read") == 1 and errors.count("again in 1s") == 1
    assert "renamed" not in errors

"""Fixture of the Open-i tests: an archive unpacked as published."""

from pathlib import Path

import pytest

from tests.medical.openi.openi_files import add_report, report_xml


@pytest.fixture
def openi(tmp_path: Path) -> Path:
    """Return a folder with ten reports of two images each, unpacked as published."""
    for number in range(1, 11):
        add_report(tmp_path, number, report_xml(number))
    return tmp_path

"""The table of registered encoders: `python -m qwenvl.vision`."""

import subprocess
import sys

from qwenvl.vision import VisionEncoder, list_encoders, registry
from qwenvl.vision.__main__ import encoder_table


def test_listing_shows_one_line_for_each_encoder():
    listing = subprocess.run([sys.executable, "-m", "qwenvl.vision"], capture_output=True, text=True, check=True)
    lines = listing.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list_encoders()
    rad_dino = next(line for line in lines if line.startswith("rad_dino "))
    for fact in ("RadDinoEncoder", "microsoft/rad-dino", "768", "518x518", "1369", "MIT", "open"):
        assert fact in rad_dino


def test_facts_of_an_encoder_without_a_card_are_dashes(monkeypatch):
    class Uncarded(VisionEncoder):
        pass

    monkeypatch.setitem(registry._ENCODERS, "aaa_uncarded", Uncarded)
    _, first, *_, other_forms = encoder_table().splitlines()
    assert first.split() == ["aaa_uncarded", "Uncarded", *("-",) * 6]
    assert "hf:ORG/MODEL" in other_forms

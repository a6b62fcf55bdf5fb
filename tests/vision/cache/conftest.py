"""Fixtures of the feature cache's tests."""

import sys

import pytest

from tests.vision.cache.filled_cache import OWN_ENCODER, SIZES
from tests.vision.small_encoders import random_image


@pytest.fixture
def images(tmp_path):
    paths = []
    for i, size in enumerate(SIZES):
        paths.append(str(tmp_path / f"{i}.png"))
        random_image(*size, seed=i).save(paths[-1])
    return paths


@pytest.fixture
def own_encoder(tmp_path):
    """Return the file of an encoder without parameters; its module is forgotten afterwards."""
    known = set(sys.modules)
    path = tmp_path / "own.py"
    path.write_text(OWN_ENCODER)
    yield path
    for name in set(sys.modules) - known:
        if name.startswith("qwenvl_user_encoder_"):
            del sys.modules[name]
